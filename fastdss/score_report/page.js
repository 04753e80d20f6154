// The list: what is shown, in which order, and what keys and the page's address do.

const PAGE = 50;
const ORDERS = ["minimum", "final", "drop", "length", "id", "order"];
const FIELDS = ["minimum", "final", "drop"];
const byAddress = new Map(columns.id.map((id, row) => [new URLSearchParams({ id }).get("id"), row]));
const tagNumber = new Map(tags.map(([tag], i) => [tag, i]));
const state = { q: "", sort: "minimum", reverse: false, field: "minimum", low: "", high: "", flags: new Set(), page: 0 };
const view = { rows: [], open: null, theme: "" };
const places = {};

/**
 * Each row's place in an order, worked out once. Rows without the value come last. Turns of one conversation stand
 * together, in their order, where the first of them would stand.
 */
function placesBy(key) {
  return (places[key] ??= (() => {
    const values = columns[key];
    const collator = new Intl.Collator("en", { numeric: true });
    const compare = key === "id" ? collator.compare : (a, b) => (a ?? Infinity) - (b ?? Infinity) || 0;
    const sorted = values.map((_, row) => row).sort((a, b) => compare(values[a], values[b]) || a - b);
    const ofConversation = new Map();
    sorted.forEach((row, place) => {
      if (!ofConversation.has(columns.order[row])) ofConversation.set(columns.order[row], place);
    });
    const together = (row) => ofConversation.get(columns.order[row]);
    sorted.sort((a, b) => together(a) - together(b) || (columns.turn[a] ?? 0) - (columns.turn[b] ?? 0) || a - b);
    const found = new Uint32Array(TOTAL);
    sorted.forEach((row, place) => (found[row] = place));
    return found;
  })());
}

const reverses = (row) => state.reverse && (columns[state.sort][row] ?? null) !== null;

function select() {
  const query = state.q.trim().toLowerCase();
  const wanted = [...state.flags].map((tag) => tagNumber.get(tag));
  const [low, high] = [state.low === "" ? 0 : Number(state.low), state.high === "" ? 1 : Number(state.high)];
  const values = columns[state.field];
  const ranged = state.low !== "" || state.high !== "";
  const within = (value) => value !== null && value >= low && (value < high || high >= 1);
  const rows = [];
  for (let row = 0; row < TOTAL; row++) {
    if (ranged && !within(values[row])) continue;
    if (!wanted.every((tag) => columns.tags[row].includes(tag))) continue;
    if (query && !haystack(row).includes(query)) continue;
    rows.push(row);
  }
  const place = placesBy(state.sort);
  const key = (row) => (reverses(row) ? -1 - place[row] : place[row]);
  return rows.sort((a, b) => key(a) - key(b));
}

const filtered = () => Boolean(state.q.trim() || state.low !== "" || state.high !== "" || state.flags.size);
const pages = () => Math.max(1, Math.ceil(view.rows.length / PAGE));

/** Selects and draws; the opened row stays open where it is still on the page. */
function refresh() {
  view.rows = select();
  draw();
}

function draw() {
  state.page = Math.min(Math.max(state.page, 0), pages() - 1);
  const first = state.page * PAGE;
  const rows = view.rows.slice(first, first + PAGE);
  byId("list").replaceChildren(...rows.map((row) => make("li", {}, rowHead(row, state.q.trim()))));
  byId("count").textContent = filtered() ? `${count(view.rows.length)} of ${count(TOTAL)} rows` : `${count(TOTAL)} rows`;
  byId("clear").hidden = !filtered();
  byId("page").textContent = rows.length
    ? `${count(first + 1)}–${count(first + rows.length)} of ${count(view.rows.length)}`
    : "no row fits";
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page === pages() - 1;
  if (view.open !== null && rows.includes(view.open)) unfold(view.open);
  else view.open = null;
  mark();
  showTools();
  remember();
}

const mark = () => highlight(state.q.trim(), [...document.querySelectorAll(".excerpt, .name b, .turn p")]);
const headOf = (row) => document.querySelector(`.head[data-row="${row}"]`);

function unfold(row) {
  const head = headOf(row);
  head.setAttribute("aria-expanded", "true");
  head.setAttribute("aria-controls", `body-${row}`);
  head.parentElement.append(rowBody(row));
}

function fold() {
  const head = view.open === null ? null : headOf(view.open);
  head?.setAttribute("aria-expanded", "false");
  head?.removeAttribute("aria-controls");
  head?.nextElementSibling?.remove();
  view.open = null;
}

function toggle(row) {
  const opens = view.open !== row;
  fold();
  if (opens) {
    view.open = row;
    unfold(row);
    headOf(row).scrollIntoView({ block: "nearest" });
  }
  mark();
  remember();
}

/** Opens a row wherever it is; filters that hide it are dropped. */
function show(row) {
  if (!view.rows.includes(row)) {
    Object.assign(state, { q: "", low: "", high: "", flags: new Set() });
    view.rows = select();
  }
  state.page = Math.floor(view.rows.indexOf(row) / PAGE);
  view.open = row;
  draw();
  headOf(row).focus({ preventScroll: true });
  headOf(row).scrollIntoView({ block: "start" });
}

function turnPage(step, place = 0) {
  const page = state.page + step;
  if (page < 0 || page >= pages()) return;
  fold();
  state.page = page;
  draw();
  const heads = document.querySelectorAll(".head");
  heads.item(place < 0 ? heads.length - 1 : place)?.focus();
}

function move(step) {
  const heads = [...document.querySelectorAll(".head")];
  const at = heads.indexOf(document.activeElement.closest?.("li")?.querySelector(".head") ?? null);
  const next = heads[at < 0 ? 0 : at + step];
  if (!next) return turnPage(step, step < 0 ? -1 : 0);
  if (view.open !== null) toggle(Number(next.dataset.row));
  next.focus();
}

function showTools() {
  for (const name of ["sort", "field", "low", "high"]) byId(name).value = state[name];
  if (byId("query").value !== state.q) byId("query").value = state.q;
  byId("reverse").setAttribute("aria-pressed", String(state.reverse));
  byId("reverse").textContent = state.reverse ? "↓" : "↑";
  for (const button of byId("flags").children)
    button.setAttribute("aria-pressed", String(state.flags.has(tags[button.dataset.tag][0])));
}

/** Keeps the page's address in step, so that it can be passed on. */
function remember() {
  const found = new URLSearchParams();
  if (view.open !== null) found.set("row", columns.id[view.open]);
  if (state.q) found.set("q", state.q);
  if (state.sort !== "minimum") found.set("sort", state.sort);
  if (state.reverse) found.set("reverse", "1");
  if (state.field !== "minimum") found.set("field", state.field);
  for (const name of ["low", "high"]) if (state[name] !== "") found.set(name, state[name]);
  for (const tag of state.flags) found.append("flags", tag);
  if (state.page && view.open === null) found.set("page", String(state.page + 1));
  if (view.theme) found.set("theme", view.theme);
  const hash = found.toString();
  if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? `#${hash}` : location.pathname);
}

/** What the address says; values that mean nothing here are left out. */
function follow() {
  const given = new URLSearchParams(location.hash.slice(1));
  const one = (name, among, otherwise) => (among.includes(given.get(name)) ? given.get(name) : otherwise);
  const share = (name) => (given.get(name)?.match(/^[01]?(\.\d+)?$/) ? given.get(name) : "");
  Object.assign(state, {
    q: given.get("q") ?? "",
    sort: one("sort", ORDERS, "minimum"),
    reverse: given.get("reverse") === "1",
    field: one("field", FIELDS, "minimum"),
    low: share("low"),
    high: share("high"),
    flags: new Set(given.getAll("flags").filter((tag) => tagNumber.has(tag))),
    page: (Number.parseInt(given.get("page"), 10) || 1) - 1,
  });
  setTheme(one("theme", ["light", "dark"], view.theme));
  view.open = null;
  view.rows = select();
  const id = given.get("row");
  const row = byAddress.get(id);
  if (row !== undefined) return show(row);
  draw();
  if (id !== null) byId("count").textContent += ` – row “${plain(id)}” is not on this page`;
}

function setTheme(theme) {
  view.theme = theme;
  document.documentElement.style.colorScheme = theme || "light dark";
}

function change(values) {
  Object.assign(state, { page: 0 }, values);
  refresh();
}

function tools() {
  const counts = new Array(tags.length).fill(0);
  for (const row of columns.tags) for (const tag of row) counts[tag]++;
  tags.forEach(([, words], i) => {
    if (!counts[i]) return;
    const number = make("small", {}, count(counts[i]));
    byId("flags").append(make("button", { type: "button", class: "flag", "data-tag": i }, ...textNodes(words), " ", number));
  });
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("query").addEventListener("input", (event) => change({ q: event.target.value }));
  for (const name of ["sort", "field", "low", "high"])
    byId(name).addEventListener("input", (event) => change({ [name]: event.target.value }));
  byId("reverse").addEventListener("click", () => change({ reverse: !state.reverse }));
  byId("flags").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const [tag] = tags[button.dataset.tag];
    const flags = new Set(state.flags);
    if (!flags.delete(tag)) flags.add(tag);
    change({ flags });
  });
  byId("clear").addEventListener("click", () => change({ q: "", low: "", high: "", flags: new Set() }));
  byId("numbers").addEventListener("change", (event) =>
    document.body.classList.toggle("numbered", event.target.checked),
  );
  byId("previous").addEventListener("click", () => turnPage(-1));
  byId("next").addEventListener("click", () => turnPage(1));
  byId("theme").addEventListener("click", () => {
    const dark = view.theme ? view.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    setTheme(dark ? "light" : "dark");
    remember();
  });
  const bar = byId("tools");
  const measure = () => document.documentElement.style.setProperty("--bar", `${bar.offsetHeight + 8}px`);
  measure();
  new ResizeObserver(measure).observe(bar);
  byId("list").addEventListener("click", (event) => {
    const head = event.target.closest(".head");
    if (head) toggle(Number(head.dataset.row));
  });
  for (const bin of document.querySelectorAll(".bin"))
    bin.addEventListener("click", () => {
      const { field, low, high } = bin.dataset;
      change({ field, low, high, q: "", flags: new Set() });
      byId("rows-title").scrollIntoView({ block: "start" });
    });
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  n: () => turnPage(1),
  p: () => turnPage(-1),
  "/": () => byId("query").focus(),
};

function escape(typing) {
  if (typing) return document.activeElement.blur();
  const open = view.open;
  if (open === null) return;
  toggle(open);
  headOf(open)?.focus();
}

/** Arrows: along the rows from a row's line, along the chunks of the open row. */
function arrow(key) {
  const focus = document.activeElement;
  if (key === "ArrowDown" || key === "ArrowUp") {
    if (!focus.matches(".head")) return false;
    move(key === "ArrowDown" ? 1 : -1);
    return true;
  }
  const text = focus.closest("li")?.querySelector(".heat[tabindex]");
  text?.dispatchEvent(new CustomEvent("step", { detail: key === "ArrowRight" ? 1 : -1 }));
  return Boolean(text);
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") return escape(typing);
  if (typing) return;
  const known = event.key.startsWith("Arrow") ? arrow(event.key) : KEYS[event.key] && (KEYS[event.key](), true);
  if (known) event.preventDefault();
}

tools();
document.addEventListener("keydown", pressed);
window.addEventListener("hashchange", () => {
  follow();
  if (view.open === null) byId("rows-title").scrollIntoView();
});
follow();
prepare();
