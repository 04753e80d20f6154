"use strict";
// The page's data, and the only ways in which text and shapes get into the document.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const { columns, tags, steps, block: BLOCK, left_out: LEFT_OUT } = read("index");
const TOTAL = columns.id.length;
const byId = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");
const heat = (score) => steps.filter((edge) => score >= edge).length;

const blocks = [];
/** What an open row needs: texts, scores, ends. Blocks of rows are parsed when first asked for. */
function detail(row) {
  const number = Math.floor(row / BLOCK);
  blocks[number] ??= read(`block-${number}`);
  return blocks[number][row % BLOCK];
}

const haystacks = [];
/** Everything that a search looks at, in lower case. */
function haystack(row) {
  const { response = "", history = [], error = "" } = detail(row);
  const texts = [columns.id[row], error, ...history.map((turn) => turn[1]), response];
  return (haystacks[row] ??= texts.join("\n").toLowerCase());
}

/** Prepares searching while the reader looks at the page. */
function prepare(row = 0) {
  const later = window.requestIdleCallback ?? ((task) => setTimeout(() => task({ timeRemaining: () => 8 }), 16));
  later((idle) => {
    while (row < TOTAL && idle.timeRemaining() > 2) haystack(row++);
    if (row < TOTAL) prepare(row);
  });
}

/** An element; children are nodes, or strings that become text. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function shape(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const HIDDEN =
  /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\u{e0000}-\u{e007f}]|[\ud800-\udfff]/gu;

const spelled = (char) => `U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** Text nodes; characters that are invisible or reorder text are spelled out as U+…. */
function textNodes(text) {
  const nodes = [];
  let position = 0;
  for (const match of text.matchAll(HIDDEN)) {
    nodes.push(text.slice(position, match.index));
    nodes.push(make("span", { class: "code", title: "a character that does not show" }, spelled(match[0])));
    position = match.index + match[0].length;
  }
  nodes.push(text.slice(position));
  return nodes.filter((node) => node !== "");
}

/** The same as one string, for attributes. */
const plain = (text) => text.replace(HIDDEN, spelled);

/** Marks every occurrence of the query under the roots without touching the document. */
function highlight(query, roots) {
  if (!CSS.highlights) return;
  const ranges = query ? roots.flatMap((root) => occurrences(root, query.toLowerCase())) : [];
  CSS.highlights.set("found", new Highlight(...ranges));
}

function occurrences(root, query) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const nodes = [];
  let text = "";
  while (walker.nextNode()) {
    nodes.push({ node: walker.currentNode, start: text.length });
    text += walker.currentNode.data;
  }
  const lower = text.toLowerCase();
  if (lower.length !== text.length) return []; // a letter whose lower case is longer shifts every position
  const ranges = [];
  const place = (offset) => {
    const { node, start } = nodes.findLast((entry) => entry.start <= offset);
    return [node, offset - start];
  };
  for (let at = lower.indexOf(query); at >= 0 && ranges.length < 1000; at = lower.indexOf(query, at + query.length)) {
    const range = new Range();
    range.setStart(...place(at));
    range.setEnd(...place(at + query.length));
    ranges.push(range);
  }
  return ranges;
}
