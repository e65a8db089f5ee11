// Draws the set, the order and the board. Text goes in as text only: no name can become markup.

import { LETTERS, spoken, unplaced } from "./state.js";

export const $ = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const ordinal = (n) => `${n}${["th", "st", "nd", "rd"][n] || "th"}`;

// A long name breaks before its bits.
const broken = (name) => name.split(/(?=@)/).flatMap((part, i) => (i ? [element("wbr"), part] : [part]));

// Small images are enlarged without blur: blur would hide what is to be judged.
function sharpened(image) {
  const crisp = () => image.classList.toggle("crisp", image.naturalWidth < image.clientWidth * 0.75);
  image.addEventListener("load", crisp);
  return image;
}

export function drawSet(set, size) {
  $("prompt").textContent = set.prompt;
  $("ask").textContent =
    set.task === "fidelity"
      ? "Which image is nearest to full precision?"
      : "Which image do you like best for this prompt?";
  const reference = $("reference");
  reference.hidden = !set.reference;
  if (set.reference) sharpened(reference.querySelector("img")).src = set.reference;
  $("images").replaceChildren(...set.images.map((src, i) => card(src, i, size, set.reference)));
}

function card(src, i, size, reference) {
  const letter = LETTERS[i];
  const image = sharpened(
    element("img", { src, alt: `Image ${letter}`, draggable: "false", "data-src": src }),
  );
  const ranks = Array.from({ length: size }, (_, r) =>
    element(
      "button",
      {
        type: "button",
        class: "rank",
        "data-rank": r + 1,
        "aria-pressed": "false",
        "aria-label": `Image ${letter}: rank ${r + 1}`,
        tabindex: "-1",
      },
      String(r + 1),
    ),
  );
  const tools = [
    element("button", { type: "button", class: "tool zoom", tabindex: "-1", "aria-label": `Zoom image ${letter}` }, "⤢"),
  ];
  if (reference) {
    tools.unshift(
      element(
        "button",
        {
          type: "button",
          class: "tool flip",
          tabindex: "-1",
          "aria-pressed": "false",
          "aria-label": `Show the reference in place of image ${letter}`,
        },
        "⇄",
      ),
    );
  }
  return element(
    "li",
    {},
    element(
      "div",
      { class: "card", role: "group", tabindex: i ? "-1" : "0", "data-image": i, "aria-label": `Image ${letter}` },
      element("div", { class: "frame grip" }, image, element("span", { class: "over" }, "full precision")),
      element("div", { class: "bar" }, element("span", { class: "letter grip" }, letter), ...tools),
      element("div", { class: "ranks", role: "group", "aria-label": `Rank of image ${letter}` }, ...ranks),
    ),
  );
}

export const cards = () => [...document.querySelectorAll("#images .card")];

export function drawState(state, set) {
  cards().forEach((one, i) => {
    const rank = state.ranks[i];
    one.classList.toggle("placed", rank !== null);
    one.setAttribute("aria-label", `Image ${LETTERS[i]}, ${spoken(state, i)}`);
    for (const button of one.querySelectorAll(".rank")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.rank) === rank));
    }
  });
  const rows = state.ranks.map((_, r) => {
    const members = state.ranks.flatMap((rank, i) => (rank === r + 1 ? [i] : []));
    const names = members.map((i) => LETTERS[i]).join(" and ");
    return element(
      "li",
      {
        class: "tier",
        "data-rank": r + 1,
        "aria-label": `Rank ${r + 1}: ${names || "empty"}${members.length > 1 ? ", tied" : ""}`,
      },
      element("span", { class: "nth", "aria-hidden": "true" }, ordinal(r + 1)),
      ...members.map((i) => chip(set, i)),
    );
  });
  $("tiers").replaceChildren(...rows);
  const left = unplaced(state).length;
  $("submit").disabled = left === state.ranks.length;
  $("undo").disabled = !state.past.length;
}

function chip(set, i) {
  return element(
    "span",
    { class: "chip grip", "data-image": i },
    element("img", { src: set.images[i], alt: "", draggable: "false" }),
    LETTERS[i],
  );
}

export function focusCard(i) {
  cards().forEach((one, n) => one.setAttribute("tabindex", n === i ? "0" : "-1"));
  const one = cards()[i];
  one?.focus({ preventScroll: true });
  one?.scrollIntoView({ block: "nearest" });
}

export function flip(one, set, on) {
  const image = one.querySelector("img");
  one.classList.toggle("flipped", on);
  one.querySelector(".flip")?.setAttribute("aria-pressed", String(on));
  image.src = on ? set.reference : image.dataset.src;
}

export function drawReveal(receipt, set, tiers) {
  const rows = tiers.flatMap((tier, rank) =>
    tier.map((i) =>
      element(
        "li",
        {},
        element("span", { class: "nth" }, ordinal(rank + 1)),
        element("img", { src: set.images[i], alt: "", draggable: "false" }),
        element("span", { class: "letter" }, LETTERS[i]),
        element("span", { class: "name" }, ...broken(receipt.names[i])),
      ),
    ),
  );
  $("reveal-title").textContent = "Your vote is in";
  $("revealed").replaceChildren(...rows);
  const notes = {
    repeat: "You had seen this set before: it shows how steady answers are, and is not counted twice.",
    "gold-order": "This set was a check with a spoilt image, and is not counted on the board.",
    "gold-tie": "This set was a check with one image shown twice, and is not counted on the board.",
  };
  $("reveal-note").textContent = notes[receipt.purpose] || `Votes of yours that count: ${receipt.number}.`;
}

export function drawBoard(found) {
  $("board-note").textContent = `${found.title}: ${found.votes} ${found.votes === 1 ? "vote" : "votes"}`;
  const ends = found.lines.flatMap((line) => (line.votes ? [line.low, line.high] : []));
  const low = Math.min(...ends, Infinity);
  const high = Math.max(...ends, -Infinity);
  const at = (value) => (100 * (value - low)) / (high - low || 1);
  const shared = (line) => found.lines.filter((other) => other.place === line.place).length > 1;
  const rows = found.lines.map((line) =>
    element(
      "tr",
      {},
      element("td", {}, line.votes ? `${line.place}${shared(line) ? "=" : ""}` : "–"),
      element("th", { scope: "row" }, ...broken(line.contestant)),
      element("td", {}, line.votes ? interval(line, at) : "–"),
      element("td", {}, String(line.votes)),
    ),
  );
  $("board").tBodies[0].replaceChildren(...rows);
}

// A strict policy forbids style attributes in markup; SVG attributes say the same.
function interval(line, at) {
  const svg = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const words = `${line.mu.toFixed(1)}, from ${line.low.toFixed(1)} to ${line.high.toFixed(1)}`;
  const drawn = svg("svg", { viewBox: "-3 0 106 12", class: "interval", role: "img", "aria-label": words });
  drawn.append(
    svg("line", { x1: at(line.low), x2: at(line.high), y1: 6, y2: 6 }),
    svg("circle", { cx: at(line.mu), cy: 6, r: 3 }),
  );
  return element("span", { class: "score" }, line.mu.toFixed(1), drawn);
}
