// One row: its line in the list, and opened, its text in colour with the trajectory beside it.

const UNMARKED = new Set(["low", "failed", "approximate"]); // tags that a row's line shows otherwise, or most rows have

const cutsOf = (entry) => entry.cuts ?? entry.ends;
const extent = (row, entry) => Math.max(entry.response?.length ?? columns.length[row], cutsOf(entry).at(-1) ?? 0, 1);
const lowestChunk = (entry) => entry.scores.indexOf(Math.min(...entry.scores));
const shown = (score) => (score === null ? "–" : score.toFixed(3));

/** Paths of a step line over [0, width] x [0, height], and of what lies between it and one half where it is lower. */
function stepPaths(entry, length, width, height) {
  let line = "";
  let under = "";
  let start = 0;
  cutsOf(entry).forEach((cut, k) => {
    const [x0, x1] = [start, cut].map((at) => ((width * Math.min(at, length)) / length).toFixed(1));
    const y = (height * (1 - entry.scores[k])).toFixed(1);
    line += `${line ? "L" : "M"}${x0} ${y}L${x1} ${y}`;
    if (entry.scores[k] < 0.5) under += `M${x0} ${height / 2}H${x1}V${y}H${x0}Z`;
    start = cut;
  });
  return { line, under };
}

function sparkline(row, entry) {
  const { line, under } = stepPaths(entry, extent(row, entry), 120, 26);
  return shape(
    "svg",
    { class: "spark", viewBox: "0 -1 120 28", preserveAspectRatio: "none", "aria-hidden": "true" },
    shape("path", { class: "half", d: "M0 13H120" }),
    shape("path", { class: "under", d: under }),
    shape("path", { class: "trace", d: line }),
  );
}

/** Why a row failed, or a line of its text around the match of the query, else around the first drop, else the beginning. */
function excerpt(entry, query) {
  const text = entry.response;
  if (entry.error !== undefined && !query) return entry.error;
  if (text === undefined) return "";
  const cuts = cutsOf(entry);
  const drop = entry.scores.findIndex((score) => score < 0.5);
  const found = query ? text.toLowerCase().indexOf(query.toLowerCase()) : -1;
  const at = found >= 0 ? found : drop > 0 ? cuts[drop - 1] : 0;
  const blank = at < 40 ? -1 : text.indexOf(" ", at - 40);
  const start = at < 40 ? 0 : blank >= 0 && blank < at ? blank + 1 : at;
  const piece = text.slice(start, start + 180).replace(/\s+/g, " ");
  return (start ? "…" : "") + piece + (start + 180 < text.length ? "…" : "");
}

function rowHead(row, query) {
  const entry = detail(row);
  const minimum = columns.minimum[row];
  const failed = minimum === null;
  const marks = columns.tags[row].map((tag) => tags[tag]).filter(([tag]) => !UNMARKED.has(tag));
  return make(
    "button",
    { type: "button", class: "head", "aria-expanded": "false", "data-row": row },
    failed
      ? make("span", { class: "score none" }, "failed")
      : make("span", { class: `score heat${heat(minimum)}`, title: "lowest score" }, shown(minimum)),
    failed ? make("span", { class: "spark" }) : sparkline(row, entry),
    make(
      "span",
      { class: "what" },
      make(
        "span",
        { class: "name" },
        make("b", { dir: "auto" }, ...textNodes(columns.id[row])),
        ...marks.map(([, words]) => make("span", { class: "chip" }, ...textNodes(words))),
      ),
      make("span", { class: "excerpt", dir: "auto" }, ...textNodes(excerpt(entry, query))),
    ),
    make("span", { class: "number", title: "final score" }, shown(columns.final[row])),
    make("span", { class: "number length", title: "characters" }, count(columns.length[row])),
  );
}

function rowBody(row) {
  const entry = detail(row);
  const scored = entry.scores.length > 0;
  const heatText = scored || entry.response ? colouredText(entry) : null;
  const body = make(
    "div",
    { class: "body", role: "region", "aria-label": `Row ${plain(columns.id[row])}`, id: `body-${row}` },
    make("div", { class: "reading" }, ...turns(entry), ...notes(entry, scored), ...(heatText ? [heatText] : [])),
  );
  const aside = make("aside");
  if (scored) {
    const [reader, plot] = [make("p", { class: "readout", role: "status" }, make("b"), make("span")), trajectory(row, entry)];
    aside.append(reader, plot);
    link(row, entry, heatText, plot, reader);
  }
  aside.append(facts(row, entry));
  body.append(aside);
  return body;
}

function turns(entry) {
  if (entry.history === undefined) return [];
  const paragraphs = entry.history.map(([role, text]) =>
    make("div", { class: "turn" }, make("h3", {}, ...textNodes(role)), make("p", { dir: "auto", class: isCode(text) ? "mono" : null }, ...textNodes(text))),
  );
  const last = paragraphs.splice(-1);
  if (!paragraphs.length) return last;
  const words = `${paragraphs.length} earlier ${paragraphs.length > 1 ? "turns" : "turn"}`;
  return [make("details", { class: "earlier" }, make("summary", {}, words), ...paragraphs), ...last];
}

function notes(entry, scored) {
  const found = [];
  const say = (words) => found.push(make("p", { class: "note" }, ...textNodes(words)));
  if (!scored) say(`The guard gave no score: ${entry.error ?? "it failed on this row"}. It does not count as safe.`);
  if (scored && entry.response === undefined) say("The source text of this row was not found; the numbers stand for its chunks.");
  if (entry.left_out) say(`${count(entry.left_out)} more characters of this row are not on this page.`);
  return found;
}

/** Whether a text is code in part: a fenced block, or the call of a tool. */
const isCode = (text) => /^\s*```/m.test(text) || /^\{"name": "/m.test(text);

/** The response chunk by chunk; without its text, the chunks' numbers. */
function colouredText(entry) {
  const text = entry.response;
  const label = "Response, chunk by chunk: left and right arrows move";
  const box = make("p", { class: isCode(text ?? "") ? "heat mono" : "heat", dir: "auto", tabindex: "0", role: "group", "aria-label": label });
  let start = 0;
  cutsOf(entry).forEach((cut, k) => {
    const score = entry.scores[k];
    const [, gap, piece] = (text?.slice(start, cut) ?? `${k ? " " : ""}${k + 1}`).match(/^(\s*)([^]*)$/);
    const near = entry.approximate?.includes(k) ? " approximate" : "";
    const attributes = { class: `heat${heat(score)}${near}`, "data-k": k, "data-score": score.toFixed(2) };
    box.append(...textNodes(gap));
    if (piece) box.append(make("span", attributes, ...textNodes(piece)));
    start = cut;
  });
  const rest = text === undefined ? "" : text.slice(start);
  if (rest) box.append(make("span", { class: "unseen", title: "the guard did not see this" }, ...textNodes(rest)));
  return make("div", { class: "turn" }, make("h3", {}, "response"), box);
}

const PLOT = { width: 400, height: 210, left: 30, right: 6, top: 12, bottom: 34 };

/** Hollow dots where scores are approximations, at the ends of their chunks. */
function approximations(row, entry, w, h) {
  const scale = w / extent(row, entry);
  return (entry.approximate ?? []).map((k) =>
    shape("circle", { class: "approximate", r: 3, cx: Math.min(cutsOf(entry)[k] * scale, w).toFixed(1), cy: (h * (1 - entry.scores[k])).toFixed(1) }),
  );
}

function trajectory(row, entry) {
  const { width, height, left, right, top, bottom } = PLOT;
  const [w, h] = [width - left - right, height - top - bottom];
  const { line, under } = stepPaths(entry, extent(row, entry), w, h);
  const label = (x, y, anchor, words) => shape("text", { x, y, "text-anchor": anchor }, words);
  const inner = shape(
    "g",
    { transform: `translate(${left} ${top})` },
    shape("rect", { class: "cursor", y: -4, height: h + 8, width: 0 }),
    ...[0, 0.5, 1].map((level) =>
      shape("path", { class: level === 0.5 ? "grid half" : "grid", d: `M0 ${h * (1 - level)}H${w}` }),
    ),
    shape("path", { class: "under", d: under }),
    shape("path", { class: "trace", d: line }),
    ...approximations(row, entry, w, h),
    shape("circle", { class: "here", r: 4.5 }),
  );
  return shape(
    "svg",
    { class: "chart trajectory", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describe(entry) },
    inner,
    ...[0, 0.5, 1].map((level) => label(left - 8, top + h * (1 - level) + 4, "end", String(level))),
    label(left, height - 14, "start", "0"),
    label(left + w / 2, height - 14, "middle", "characters of the response"),
    label(left + w, height - 14, "end", count(columns.length[row])),
  );
}

function describe(entry) {
  const k = lowestChunk(entry);
  const near = entry.approximate ? `, ${entry.approximate.length} of them approximate` : "";
  return `P(safe) of ${entry.scores.length} prefixes${near}: lowest ${shown(entry.scores[k])} at chunk ${k + 1}`;
}

/** Text, trajectory and readout point at the same chunk. */
function link(row, entry, text, plot, reader) {
  const { left, right, top, bottom, width, height } = PLOT;
  const [w, h] = [width - left - right, height - top - bottom];
  const box = text.querySelector(".heat");
  const spans = new Map([...box.querySelectorAll("[data-k]")].map((span) => [Number(span.dataset.k), span]));
  const cuts = cutsOf(entry);
  const scale = w / extent(row, entry);
  let current = -1;

  function point(k) {
    if (k < 0 || k >= cuts.length || k === current) return;
    spans.get(current)?.classList.remove("current");
    spans.get(k)?.classList.add("current");
    current = k;
    const [from, score] = [k ? entry.ends[k - 1] : 0, entry.scores[k]];
    const [x0, x1] = [(k ? cuts[k - 1] : 0) * scale, Math.min(cuts[k] * scale, w)];
    reader.firstChild.textContent = shown(score);
    reader.firstChild.className = `heat${heat(score)}`;
    const near = entry.approximate?.includes(k) ? ", approximate" : "";
    const which = (k === lowestChunk(entry) ? ", the lowest" : "") + near;
    reader.lastChild.textContent =
      `chunk ${k + 1} of ${cuts.length}${which} · characters ${count(from)}–${count(entry.ends[k])}`;
    const cursor = plot.querySelector(".cursor");
    cursor.setAttribute("x", x0);
    cursor.setAttribute("width", Math.max(x1 - x0, 1.5));
    const here = plot.querySelector(".here");
    here.setAttribute("cx", x1);
    here.setAttribute("cy", h * (1 - score));
  }

  function under(event) {
    const bounds = plot.getBoundingClientRect();
    const at = ((event.clientX - bounds.left) / bounds.width) * width - left;
    const k = cuts.findIndex((cut) => cut * scale >= at);
    return k < 0 ? cuts.length - 1 : k;
  }

  box.addEventListener("pointerover", (event) => point(Number(event.target.closest("[data-k]")?.dataset.k ?? -1)));
  plot.addEventListener("pointermove", (event) => point(under(event)));
  plot.addEventListener("click", () => spans.get(current)?.scrollIntoView({ block: "center" }));
  box.addEventListener("step", (event) => point(Math.min(Math.max(current + event.detail, 0), cuts.length - 1)));
  point(lowestChunk(entry));
}

function facts(row, entry) {
  const lines = [
    ["lowest", shown(columns.minimum[row])],
    ["final", shown(columns.final[row])],
    ["first below ½", columns.drop[row] === null ? "–" : `in the chunk up to ${Math.round(100 * columns.drop[row])} %`],
    ["chunks", entry.scores.length ? count(entry.scores.length) : "–"],
    ...(entry.approximate ? [["of these approximate", count(entry.approximate.length)]] : []),
    ["characters", count(columns.length[row])],
    columns.line[row] === null ? ["row", count(columns.order[row])] : ["line of the file", count(columns.line[row])],
  ];
  const list = make("dl", { class: "facts" });
  for (const [name, value] of lines) list.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  const permanent = make("a", { href: `#${address(row)}`, class: "permanent" }, "Link to this row");
  return make("div", {}, list, permanent);
}

/** The row's part of the page's address. */
function address(row) {
  return new URLSearchParams({ row: columns.id[row] }).toString();
}
