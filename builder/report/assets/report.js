"use strict";
(async () => {
  const NOTHING = 65533, ZERO = 65534, BAD = 65535, DIGITS = 900, LOWEST = -44;  // as maps.py sends values
  const FONT = 12, BLUE = "#3b82c4", ORANGE = "#d9660b", GREEN = "#1a9c72", PURPLE = "#b0589f", GREY = "#8a8f98";
  const nonce = document.currentScript.nonce;
  const plots = [...document.querySelectorAll(".plot")];
  const tip = document.getElementById("tip");
  const decoded = {};
  let numbers = null, measure = null;

  // ---- what needs no figure: sections, tables, theme ----

  const nav = document.getElementById("nav");
  for (const section of document.querySelectorAll("main > section")) {
    const link = document.createElement("a");
    link.href = "#" + section.id;
    link.textContent = section.dataset.title;
    nav.append(link);
  }

  const sortValue = (row, column, numeric) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent;
    return numeric ? (text === "" ? NaN : Number(text.replace(/inf$/, "Infinity"))) : text;
  };

  const givenOrder = new Map();

  function sortBy(header) {  // up, down, and back to the order that the rows came in
    const table = header.closest("table"), body = table.tBodies[0];
    if (!givenOrder.has(table)) givenOrder.set(table, [...body.rows]);
    const numeric = header.dataset.kind === "number", column = header.cellIndex;
    const order = { none: "ascending", ascending: "descending", descending: "none" }[header.getAttribute("aria-sort")];
    for (const other of header.parentNode.cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", order);
    if (order === "none") return body.append(...givenOrder.get(table));
    const keyed = [...body.rows].map(row => [sortValue(row, column, numeric), row]);
    const collator = new Intl.Collator("en", { numeric: true });
    const empty = value => (numeric ? Number.isNaN(value) : value === "");
    keyed.sort(([a], [b]) => {
      if (empty(a) || empty(b)) return empty(a) - empty(b);
      return (numeric ? a - b : collator.compare(a, b)) * (order === "descending" ? -1 : 1);
    });
    body.append(...keyed.map(([, row]) => row));
  }

  function search(field) {
    const table = document.getElementById(field.dataset.search), words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      shown += !row.hidden;
    }
    const all = table.tBodies[0].rows.length;
    const count = document.querySelector(`[data-count="${table.id}"]`);
    count.textContent = shown === all ? `${all.toLocaleString("en")} rows` : `${shown.toLocaleString("en")} of ${all.toLocaleString("en")} rows`;
  }

  for (const header of document.querySelectorAll("thead th")) header.querySelector("button").addEventListener("click", () => sortBy(header));
  for (const field of document.querySelectorAll("[data-search]")) field.addEventListener("input", () => search(field));

  const theme = document.getElementById("theme");
  const applyTheme = () => {
    if (theme.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme.value;
  };
  try { theme.value = localStorage.getItem("builder-theme") || "auto"; } catch { /* a page from a file may have no storage */ }
  applyTheme();

  // ---- numbers ----

  const bytesOf = text => {
    const binary = atob(text), bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  };
  const inflated = key => {
    const packed = bytesOf(document.getElementById(key).textContent);
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };

  const LOGS = Float32Array.from({ length: DIGITS }, (_, digits) => Math.log10((digits + 100) / 100));

  function matrix(measure) {  // decimal logarithms, a row a parameter; `bad` marks what is not finite
    if (decoded[measure]) return decoded[measure];
    const { steps, codes } = numbers.parameters.matrices[measure];
    const raw = new Uint16Array(bytesOf(codes).buffer), wide = steps.length;
    const z = [], bad = [];
    for (let start = 0; start < raw.length; start += wide) {
      const row = new Float32Array(wide), marks = new Float32Array(wide);
      for (let i = 0; i < wide; i++) {
        const code = raw[start + i];
        row[i] = code === NOTHING || code === BAD ? NaN : code === ZERO ? -99 : Math.floor(code / DIGITS) + LOWEST + LOGS[code % DIGITS];
        marks[i] = code === BAD ? 1 : NaN;
      }
      z.push(row);
      bad.push(marks);
    }
    return (decoded[measure] = { steps, z, bad });
  }

  const shown = (log, bad) => {
    if (bad === 1) return "NaN or inf";
    if (log < -90) return "0";
    const text = Number((10 ** log).toPrecision(3));
    return log < -3 || log > 5 ? text.toExponential() : text.toString();
  };
  const plain = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const clipped = (text, most) => {
    if (text.length <= most) return text;
    const tail = Math.ceil(most * 0.6);
    return text.slice(0, most - tail - 1) + "…" + text.slice(-tail);
  };

  const unescaped = html => new DOMParser().parseFromString(html, "text/html").documentElement.textContent;

  // ---- figures ----

  function colours() {
    const body = getComputedStyle(document.body);
    return { text: body.color, page: body.backgroundColor, line: getComputedStyle(document.querySelector("footer")).borderTopColor };
  }

  function themed(layout) {
    const { text, page, line } = colours();
    const axis = { gridcolor: line, linecolor: line, tickcolor: line, zerolinecolor: line, ticklabeloverflow: "allow" };  // "hide" measures each label
    const result = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, size: FONT, family: getComputedStyle(document.body).fontFamily } };
    result.modebar = { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: text };
    result.hoverlabel = { bgcolor: page, bordercolor: line, font: { color: text }, namelength: -1 };
    result.xaxis = { ...layout.xaxis, ...axis };
    result.yaxis = { ...layout.yaxis, ...axis };
    return result;
  }

  function rowTicks(rows, blocks, range, height, wide) {  // names where they fit, else the middle of each block
    const low = Math.max(0, Math.ceil(Math.min(...range))), high = Math.min(rows.length - 1, Math.floor(Math.max(...range)));
    const most = Math.max(2, Math.floor(height / 15)), letters = wide < 560 ? 18 : 28;
    const places = [], texts = [];
    if (high - low + 1 <= most) {
      for (let i = low; i <= high; i++) { places.push(i); texts.push(rows[i]); }
    } else {
      const apart = (15 * (high - low + 1)) / height;
      for (let start = low, end; start <= high; start = end + 1) {
        for (end = start; end < high && blocks[end + 1] === blocks[start];) end++;
        const middle = (start + end) / 2;
        if (places.length && middle - places.at(-1) < apart) continue;
        places.push(middle);
        texts.push(blocks[start]);
      }
    }
    return { tickmode: "array", tickvals: places, ticktext: texts.map(text => plain(clipped(text, letters))) };
  }

  const LOG_AXIS = { exponentformat: "e", nticks: 3, tickformat: ".3~g" }, WHOLE = { tickformat: ",.12~g" };  // as figures.py has them

  // Columns are as wide as their steps are apart, or all alike where some would be too narrow to be seen.
  const uneven = steps => steps.length > 2 && Math.min(...steps.slice(1).map((step, i) => step - steps[i])) < (steps.at(-1) - steps[0]) / (steps.length - 1) / 2;
  const columns = steps => (uneven(steps) ? steps.map(step => step.toLocaleString("en")) : steps);

  function stepAxis(steps) {
    const axis = { ...WHOLE, title: { text: "step" }, showgrid: false, zeroline: false };
    if (uneven(steps)) return { ...axis, type: "category", title: { text: "step, unevenly apart" }, nticks: 6, tickangle: 0 };
    return steps.length > 1 ? axis : { ...axis, tickmode: "array", tickvals: steps };
  }

  function margins(texts, top, more = 0) {  // known beforehand, so that plotly need not draw twice to find them
    measure ??= document.createElement("canvas").getContext("2d");
    measure.font = `${FONT}px ${getComputedStyle(document.body).fontFamily}`;
    const widest = Math.max(...texts.map(text => measure.measureText(text.replace(/<[^>]*>/g, "").replace(/&[a-z]+;/g, "&")).width));
    return { l: Math.ceil(widest) + 12 + more, r: 28, t: top, b: BELOW, autoexpand: false };
  }

  const blockOf = name => {
    const parts = name.split("."), at = parts.findIndex(part => /^\d+$/.test(part));
    return at < 0 ? name : parts.slice(0, at + 1).join(".");
  };

  const BELOW = 52, above = figure => (figure.matrix ? 48 : 36);
  const inner = (rows, plot) => Math.min(Math.max(rows.length * 24, 120), plot.clientWidth < 560 ? 420 : 560);

  function heightOf(plot) {
    const figure = numbers.figures[plot.dataset.figure];
    if (!figure) return 420;
    return figure.rows.length ? inner(figure.rows, plot) + above(figure) + BELOW : figure.layout.height ?? 320;
  }

  function rowAxis(figure, plot, range) {
    const blocks = figure.matrix ? numbers.parameters.blocks : figure.rows.map(blockOf);
    return { ...rowTicks(figure.rows, blocks, range, inner(figure.rows, plot), plot.clientWidth), range, automargin: false, zeroline: false };
  }

  // A screen would leave out rows and columns for which it has no pixels. Those that share one are merged, and the
  // worst of them is shown: what is not finite, then what is farthest from healthy, or greatest.
  function merged({ z, bad }, ratio, down, across) {
    const wide = z[0].length, shown = [], marks = [], from = [];
    for (let top = 0; top < z.length; top += down) {
      const line = new Float32Array(Math.ceil(wide / across)), mark = new Float32Array(line.length), places = [];
      for (let group = 0; group < line.length; group++) {
        let at = [top, group * across], most = -Infinity;
        for (let row = top; row < Math.min(top + down, z.length); row++)
          for (let column = group * across; column < Math.min((group + 1) * across, wide); column++) {
            const log = z[row][column], rank = bad[row][column] === 1 ? Infinity : ratio ? Math.abs(log + 3) : log;
            if (rank > most) [most, at] = [rank, [row, column]];
          }
        line[group] = z[at[0]][at[1]];
        mark[group] = bad[at[0]][at[1]];
        places.push(at);
      }
      shown.push(line);
      marks.push(mark);
      from.push(places);
    }
    return { z: shown, bad: marks, from };
  }

  function checked(bad, pixels) {  // cuts rows into strips of some 4 pixels, black and white by turns
    const strips = Math.max(1, Math.round(pixels / 4));
    const z = bad.flatMap((row, place) => Array.from({ length: strips }, (_, strip) =>
      row.map((mark, column) => (mark === 1 ? (place * strips + strip + column) % 2 : NaN))));
    return { z, strips };
  }

  function mapTraces(plot, figure, traces, range, width) {  // of the rows and columns as merged for the rows in view
    const whole = matrix(figure.matrix), high = inner(figure.rows, plot), seen = Math.min(Math.abs(range[0] - range[1]), whole.z.length);
    const down = Math.ceil(seen / high), across = Math.max(1, Math.ceil(whole.steps.length / Math.max(width, 1)));
    const { z, bad, from } = merged(whole, figure.matrix === "update_ratio", down, across);
    const steps = columns(whole.steps), x = Array.from(z[0], (_, group) => steps[Math.min((group + 1) * across, steps.length) - 1]);
    plot.from = from;
    plot.down = down;
    return traces.map((trace, i) => {
      if (!i) return { ...trace, x, z, y0: (down - 1) / 2, dy: down, colorbar: sparse(trace.colorbar, plot) };
      const { z: marks, strips } = checked(bad, (high / seen) * down), dy = down / strips;
      return { ...trace, x, z: marks, y0: (dy - 1) / 2, dy };
    });
  }

  function sparse(bar, plot) {  // fewer ticks where there is little room
    if (!bar || plot.clientWidth >= 560 || bar.tickvals.length < 5) return bar;
    const some = list => list.filter((_, i) => i % 3 === 0);
    return { ...bar, tickvals: some(bar.tickvals), ticktext: some(bar.ticktext) };
  }

  function prepared(plot) {
    const key = plot.dataset.figure;
    if (key === "histogram") return histogramFigure(chosen.value, plot);
    if (key === "measures") return measuresFigure(chosen.value, plot);
    const figure = numbers.figures[key], layout = { ...figure.layout, height: heightOf(plot) };
    let data = figure.data;
    if (figure.rows.length) {
      const whole = [figure.rows.length - 0.5, -0.5];
      layout.yaxis = { ...layout.yaxis, ...rowAxis(figure, plot, whole), showgrid: !figure.matrix };
      layout.margin = margins(layout.yaxis.ticktext, above(figure));
    }
    if (figure.matrix) {
      const { steps } = matrix(figure.matrix), width = plot.clientWidth - layout.margin.l - layout.margin.r;
      data = mapTraces(plot, figure, data, layout.yaxis.range, width);
      layout.xaxis = { ...layout.xaxis, ...stepAxis(steps) };
    }
    const letters = plot.clientWidth < 560 ? 30 : 60;
    data = data.map(trace => (trace.name?.length > letters ? { ...trace, name: plain(clipped(unescaped(trace.name), letters)) } : trace));
    return { data, layout, figure };
  }

  function binName(bin) {  // the lower end of a bin over powers of two
    if (bin === 34) return "0";
    const power = Math.abs(bin - 34) - 27;
    return `${bin < 34 ? "−" : ""}2<sup>${power}</sup>`;
  }

  function binWords(bin) {
    if (bin === 34) return "exact zeros,";
    const power = Math.abs(bin - 34) - 27, sign = bin < 34 ? "−" : "";
    if (power === -26) return `${sign}2^−25 and nearer to zero,`;
    return power === 7 ? `${sign}2^7 and beyond,` : `${sign}2^${power} to ${sign}2^${power + 1},`.replaceAll("^-", "^−");
  }

  function histogramFigure(name, plot) {
    const found = numbers.parameters.histograms, row = numbers.parameters.names.indexOf(name);
    if (!found) return null;
    const wide = found.steps.length, size = wide * found.bins;
    found.bytes ??= bytesOf(found.roots);
    const own = found.bytes.subarray(row * size, (row + 1) * size);
    let first = found.bins, last = -1;
    for (let i = 0; i < size; i++) if (own[i]) { first = Math.min(first, i % found.bins); last = Math.max(last, i % found.bins); }
    if (last < 0) return null;
    const z = [], places = [];
    for (let bin = first; bin <= last; bin++) {
      z.push(Float32Array.from(found.steps, (_, step) => (own[step * found.bins + bin] / 255) ** 2 * 100 || NaN));
      places.push(bin);
    }
    const every = Math.ceil(places.length / 10), ticks = places.filter(bin => (bin - 34) % every === 0);
    const share = found.looked_at[row];
    const sample = share < 1 ? ` A sample was counted: ${Number((share * 100).toPrecision(2))} % of its values.` : "";
    const heaviest = z.map((line, i) => [line[wide - 1] || 0, places[i]]).reduce((a, b) => (b[0] > a[0] ? b : a));
    return {
      data: [{
        type: "heatmap", x: columns(found.steps), y: places, z, colorscale: "Cividis", zmin: 0, hoverongaps: false, text: places.map(binName),
        hovertemplate: "step %{x}<br>%{z:.1f} % of the values<extra></extra>",
        colorbar: { orientation: "h", thickness: 12, len: 1, x: 0, xanchor: "left", y: 1, yanchor: "bottom", ticksuffix: " %", outlinewidth: 0, xpad: 0, ypad: 4, ticks: "outside" },
      }],
      layout: {
        height: heightOf(plot), margin: margins(ticks.map(binName), 48, 20), xaxis: stepAxis(found.steps),
        yaxis: { tickmode: "array", tickvals: ticks, ticktext: ticks.map(binName), zeroline: false, title: { text: "value, by powers of two" } },
      },
      summary: `Share of the values of ${name} in each power of two. At step ${found.steps[wide - 1].toLocaleString("en")} the fullest bin, ${binWords(heaviest[1])} holds ${Number(heaviest[0].toPrecision(2))} %.${sample}`,
    };
  }

  function measuresFigure(name, plot) {
    const row = numbers.parameters.names.indexOf(name);
    const lines = [["rms", "weight rms", BLUE, "solid"], ["gradient_rms", "gradient rms", ORANGE, "dash"], ["clipped_gradient_rms", "after clipping", GREY, "dot"],
      ["update_ratio", "update ratio", GREEN, "dashdot"], ["distance", "distance from init", PURPLE, "longdash"]];
    const data = [], words = [];
    for (const [measure, label, color, dash] of lines) {
      if (!numbers.parameters.matrices[measure]) continue;
      const { steps, z, bad } = matrix(measure);
      const values = Array.from(z[row], log => (Number.isNaN(log) || log < -90 ? null : 10 ** log));
      if (values.every(value => value === null) && !bad[row].includes(1)) continue;
      data.push({ type: "scatter", mode: steps.length > 40 ? "lines" : "lines+markers", x: steps, y: values, name: label, line: { color, dash, width: 2 } });
      const at = steps.length - 1;
      if (!Number.isNaN(z[row][at]) || bad[row][at] === 1) words.push(`${label} ${shown(z[row][at], bad[row][at])}`);
    }
    if (!data.length) return null;
    return {
      data, layout: {
        height: heightOf(plot), margin: { l: 10, r: 28, t: 36, b: 48 }, showlegend: true, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
        xaxis: { ...WHOLE, title: { text: "step" }, zeroline: false }, yaxis: { type: "log", ...LOG_AXIS, automargin: true, zeroline: false },
      },
      summary: `${name} at the end: ${words.join(", ") || "nothing was measured"}.`,
    };
  }

  function point(event) {
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = (event.clientY + 40 > innerHeight ? event.clientY - 40 : event.clientY + 16) + "px";
  }

  function tidy(plot, figure) {  // ticks of values as the words write them: 1e-6 and 2e8, where plotly has 0.000001 and 0.2e+9
    for (const tick of plot.querySelectorAll(figure?.rows.length ? ".xtick text" : ".ytick text")) {
      const text = tick.textContent, value = Number(text.replaceAll("−", "-"));
      if (tick.childElementCount || Number.isNaN(value) || (text.length < 7 && !text.includes("e"))) continue;
      tick.textContent = value && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential().replace("+", "") : value;
    }
  }

  const view = ({ layout }) => String([layout.xaxis.range, layout.yaxis.range]);

  function listen(plot, figure) {
    plot.on("plotly_relayout", () => { plot.back.hidden = view(plot) === plot.whole; });
    tidy(plot, figure);
    plot.on("plotly_afterplot", () => tidy(plot, figure));
    if (!figure?.rows.length) return;
    plot.on("plotly_relayout", change => {
      if (!("yaxis.range[0]" in change || "yaxis.autorange" in change || "yaxis.range" in change)) return;
      const whole = [figure.rows.length - 0.5, -0.5], seen = change["yaxis.autorange"] ? whole : plot.layout.yaxis.range;
      if (plot.ticked === String(seen)) return;
      plot.ticked = String(seen);
      const { tickvals, ticktext } = rowAxis(figure, plot, seen);
      const axis = { "yaxis.tickvals": tickvals, "yaxis.ticktext": ticktext, "yaxis.range": [...seen] };
      const before = plot.down;
      const traces = figure.matrix ? mapTraces(plot, figure, figure.data, seen, plot.clientWidth - plot.layout.margin.l - plot.layout.margin.r) : [];
      if (plot.down === before) Plotly.relayout(plot, axis);
      else Plotly.update(plot, { z: traces.map(({ z }) => z), y0: traces.map(({ y0 }) => y0), dy: traces.map(({ dy }) => dy) }, axis);
    });
    if (!figure.matrix) return;
    const place = at => {
      const strips = at.curveNumber ? at.data.z.length / plot.from.length : 1;
      return plot.from[Math.floor(at.pointIndex[0] / strips)][at.pointIndex[1]];
    };
    plot.on("plotly_hover", ({ points: [at], event }) => {
      const { steps, z, bad } = matrix(figure.matrix), [row, column] = place(at);
      tip.textContent = `${figure.rows[row]} · step ${steps[column].toLocaleString("en")} · ${shown(z[row][column], bad[row][column])}`;
      tip.hidden = false;
      point(event);
    });
    plot.on("plotly_unhover", () => { tip.hidden = true; });
    plot.on("plotly_click", ({ points: [at] }) => {
      tip.hidden = true;
      choose(figure.rows[place(at)[0]], { move: true });
    });
  }

  async function draw(plot) {
    if (!window.Plotly) return;  // not yet; it will be drawn as the page stands by then
    const made = prepared(plot), caption = plot.parentNode.querySelector("figcaption");
    plot.dataset.drawn = "yes";
    if (!made) {
      Plotly.purge(plot);
      plot.textContent = "";
      caption.textContent = plot.dataset.figure === "histogram" ? "No histogram of this parameter was taken." : "Nothing was measured of this parameter.";
      plot.style.minHeight = "0";
      return;
    }
    plot.style.minHeight = "0";
    if (made.summary) caption.textContent = made.summary;
    const log = document.querySelector(`[data-log="${plot.dataset.figure}"]`);
    if (log?.checked) made.layout.yaxis = { ...made.layout.yaxis, type: "log", ...LOG_AXIS };
    made.layout.width = plot.clientWidth;
    const first = !plot.classList.contains("js-plotly-plot");
    await Plotly.react(plot, made.data, themed(made.layout), {
      displaylogo: false, displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
    plot.whole = view(plot);
    plot.ticked = null;
    plot.back.hidden = true;
    if (first) listen(plot, made.figure);
  }

  for (const plot of plots) {
    plot.back = document.createElement("button");
    Object.assign(plot.back, { type: "button", className: "back", textContent: "zoom out", hidden: true });
    plot.back.addEventListener("click", () => draw(plot));
    plot.parentNode.querySelector(".figure-head").append(plot.back);
    plot.addEventListener("touchstart", event => event.stopPropagation(), { capture: true, passive: true });  // a finger scrolls, a mouse zooms
  }

  const chosen = document.getElementById("chosen");
  const aboutOne = plots.filter(plot => ["histogram", "measures"].includes(plot.dataset.figure));

  async function choose(name, { move = false } = {}) {
    chosen.value = name;
    for (const plot of aboutOne) await draw(plot);
    if (!move) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    document.getElementById("parameter").scrollIntoView({ behavior: still ? "auto" : "smooth" });
    chosen.focus({ preventScroll: true });
  }

  const drawAll = async () => { for (const plot of plots) if (plot.dataset.drawn) await draw(plot); };

  const room = Math.floor((chosen?.clientWidth ?? 0) / 8) - 4;  // a long name is told apart by its end
  for (const option of chosen?.options ?? []) option.textContent = clipped(option.value, Math.max(room, 20));

  chosen?.addEventListener("change", () => choose(chosen.value));
  for (const button of document.querySelectorAll("[data-choose]")) button.addEventListener("click", () => choose(button.dataset.choose, { move: true }));
  for (const box of document.querySelectorAll("[data-log]")) box.addEventListener("change", () => draw(plots.find(plot => plot.dataset.figure === box.dataset.log)));
  theme.addEventListener("change", () => {
    applyTheme();
    try { localStorage.setItem("builder-theme", theme.value); } catch { /* see above */ }
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  // On paper figures are as wide as the sheet and dark on white. Nothing may wait here: printing does not.
  function redrawn(printing) {
    if (printing) document.documentElement.dataset.theme = "light";
    else applyTheme();
    document.documentElement.toggleAttribute("data-print", printing);
    plots.forEach(draw);
  }
  addEventListener("beforeprint", () => redrawn(true));
  addEventListener("afterprint", () => redrawn(false));

  let settled;
  addEventListener("resize", () => {
    clearTimeout(settled);
    settled = setTimeout(() => plots.filter(plot => plot.dataset.drawn && plot.clientWidth !== plot.layout?.width).forEach(draw), 150);
  });

  // Figures in view are drawn first, the others from there outwards while nothing else is to be done.
  const left = () => plots.filter(plot => !plot.dataset.drawn);
  const away = plot => {
    const { top, bottom } = plot.getBoundingClientRect();
    return Math.max(top - innerHeight, -bottom, 0);
  };
  const idle = window.requestIdleCallback ?? setTimeout;

  try {
    const [source, data] = await Promise.all([inflated("plotly"), inflated("numbers")]);
    numbers = JSON.parse(data);
    for (const plot of plots) plot.style.minHeight = heightOf(plot) + "px";  // so that none pushes the page about when it is drawn
    const script = document.createElement("script");
    script.nonce = nonce;
    script.textContent = source;
    document.head.append(script);
    if (!window.Plotly) throw new Error("plotly.js did not start");
    while (left().length) {
      const next = left().reduce((one, other) => (away(other) < away(one) ? other : one)), wait = away(next) ? idle : setTimeout;
      if (wait === idle) performance.mark("figures in view");
      await new Promise(resolve => wait(resolve));  // the page answers between two figures
      await draw(next);
    }
  } catch (error) {
    for (const plot of plots) if (!plot.dataset.drawn) plot.textContent = `The figure could not be drawn: ${error}`;
    throw error;
  } finally {
    document.documentElement.dataset.ready = "yes";
    idle(() => { document.documentElement.dataset.settled = "yes"; });  // long tables are laid out last
  }
})();
