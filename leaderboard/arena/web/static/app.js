// The page: keys, buttons, dragging, and the way from one set to the next.

import { Refusal, askSet, begin, board, preload, sendVote, uuid, withdraw } from "./api.js";
import { draggable } from "./drag.js";
import { LETTERS, mode, place, shift, spoken, start, tieLeft, tiers, undo, unplaced } from "./state.js";
import { $, cards, drawBoard, drawReveal, drawSet, drawState, element, flip, focusCard } from "./view.js";

const KEYS = [
  ["1 2 3 …", "Give the image this rank"],
  ["← →", "Go to the next image"],
  ["↑ ↓", "Move the image to a better or worse rank"],
  ["T", "Tie with the image on its left"],
  ["Space", "Show the reference in its place, and back"],
  ["Z", "Zoom, Esc closes"],
  ["U", "Undo"],
  ["B", "All are bad"],
  ["S", "Skip this set"],
  ["Enter", "Submit, then go on"],
];

let set = null;
let state = start(0);
let upcoming = null;
let shownAt = 0;
let busy = false;
let revealing = false;
let warned = false;
let done = 0;

const say = (text) => {
  $("status").textContent = text;
};

function complain(error) {
  const box = $("error");
  const words =
    error instanceof Refusal ? error.message : "The server does not answer. Nothing you did is lost: try again.";
  box.textContent = error ? words : "";
  box.hidden = !error;
}

const current = () => Math.max(0, cards().findIndex((one) => one.getAttribute("tabindex") === "0"));

function update(next, text) {
  state = next;
  warned = false;
  drawState(state, set);
  say(text);
}

function rank(image, value) {
  if (value > state.ranks.length) return;
  update(place(state, image, value), "");
  say(`Image ${LETTERS[image]}: ${spoken(state, image)}`);
}

function show(next) {
  set = next;
  state = start(set.images.length);
  revealing = false;
  warned = false;
  drawSet(set, set.images.length);
  drawState(state, set);
  $("reveal").hidden = true;
  $("actions").hidden = false;
  $("vote").classList.remove("revealing");
  $("vote").setAttribute("aria-busy", "false");
  shownAt = performance.now();
  focusCard(0);
  scrollTo(0, 0);
  say(`${set.images.length} images to order. Prompt: ${set.prompt}`);
  showBoard(set.board);
}

async function load() {
  complain(null);
  try {
    show(upcoming ?? (await askSet([])));
    upcoming = null;
    await prepare();
  } catch (error) {
    complain(error);
    // Too fast, or away for a moment: it is asked for again by itself.
    if (!(error instanceof Refusal) || [429, 503].includes(error.status)) setTimeout(load, 3000);
  }
}

async function prepare() {
  if (upcoming) return;
  try {
    const fresh = await askSet([set.id]);
    if (upcoming) return; // the reply to a vote was faster
    upcoming = fresh;
    preload(upcoming);
  } catch {
    upcoming = null; // it is asked for again when it is needed
  }
}

async function send(how) {
  if (busy || revealing || !set) return;
  const made = how === "rank" ? tiers(state) : how === "bad" ? [set.images.map((_, i) => i)] : [];
  const vote = {
    id: set.vote ?? (set.vote = uuid()),
    set: set.id,
    mode: how === "rank" ? mode(state) : how,
    tiers: made,
    dwell_ms: Math.round(performance.now() - shownAt),
  };
  busy = true;
  complain(null);
  document.body.classList.add("busy");
  try {
    const receipt = await sendVote(vote, upcoming ? [upcoming.id] : []);
    const following = receipt.next;
    if (following) preload(following);
    if (how === "skip") {
      queue(following);
      await advance();
      say("Skipped. " + $("status").textContent);
    } else {
      done += 1;
      $("tally").textContent = `${done} ${done === 1 ? "vote" : "votes"} this visit`;
      reveal(receipt, made);
      queue(following);
    }
  } catch (error) {
    complain(error);
    // Gone, or answered in another tab: this set is over.
    if (error instanceof Refusal && [403, 404, 409, 410].includes(error.status)) {
      upcoming = null;
      await load();
      complain(error);
    }
  } finally {
    busy = false;
    document.body.classList.remove("busy");
  }
}

// Two sets are ready at most: the next one, and then the one after it.
let after = null;
function queue(following) {
  if (following?.id === upcoming?.id) return;
  if (!upcoming) upcoming = following;
  else after = following;
}

function reveal(receipt, made) {
  revealing = true;
  drawReveal(receipt, set, made);
  cast = { vote: receipt.id, withdrawal: uuid() };
  $("take-back").disabled = false;
  $("vote").classList.add("revealing");
  for (const button of document.querySelectorAll(".rank")) button.disabled = true;
  $("actions").hidden = true;
  $("reveal").hidden = false;
  $("next").focus({ preventScroll: true });
  $("reveal").scrollIntoView({ block: "nearest" });
  const said = made.map((tier, r) => `${r + 1}: ${tier.map((i) => receipt.names[i]).join(" and ")}`);
  say(`Your vote is in. ${said.join("; ")}`);
  showBoard(set.board);
}

let cast = null; // the vote that may be taken back
async function takeBack() {
  if (busy || !revealing || !cast) return;
  busy = true;
  complain(null);
  try {
    await withdraw(cast.withdrawal, cast.vote);
    cast = null;
    $("take-back").disabled = true;
    $("reveal-title").textContent = "Your vote is taken back";
    $("reveal-note").textContent = "It stays in the log, marked as withdrawn, and does not count.";
    say("Your vote is taken back. It does not count.");
    $("next").focus({ preventScroll: true });
    showBoard(set.board);
  } catch (error) {
    complain(error);
  } finally {
    busy = false;
  }
}

async function next() {
  if (!busy && revealing) await advance();
}

async function advance() {
  if (!upcoming) return load();
  show(upcoming);
  upcoming = after;
  after = null;
  return prepare();
}

function submit() {
  const left = unplaced(state);
  if (left.length === state.ranks.length) return say(`Place at least one image first, by the keys 1 to ${left.length}.`);
  if (left.length && !warned) {
    warned = true;
    const names = left.map((i) => LETTERS[i]).join(", ");
    return say(`Not placed: ${names}. They would tie for last. Enter again submits.`);
  }
  return send("rank");
}

function toggleFlip(i) {
  if (!set.reference) return say("No reference is shown for this task.");
  const one = cards()[i];
  const on = !one.classList.contains("flipped");
  flip(one, set, on);
  return say(on ? `The reference in place of image ${LETTERS[i]}` : `Image ${LETTERS[i]} again`);
}

function zoom(i) {
  const one = cards()[i];
  const dialog = $("zoom");
  const source = one.querySelector("img");
  const image = dialog.querySelector("img");
  $("zoom-title").textContent = one.classList.contains("flipped") ? "Full precision" : `Image ${LETTERS[i]}`;
  image.src = source.src;
  image.alt = source.alt;
  image.classList.toggle("crisp", source.naturalWidth < 400);
  dialog.showModal();
  dialog.addEventListener("close", () => focusCard(i), { once: true });
}

const ACTIONS = {
  ArrowLeft: (i) => focusCard(Math.max(0, i - 1)),
  ArrowRight: (i) => focusCard(Math.min(cards().length - 1, i + 1)),
  ArrowUp: (i) => move(i, -1),
  ArrowDown: (i) => move(i, 1),
  t: (i) => (i ? tie(i) : say("Image A has none on its left.")),
  " ": toggleFlip,
  z: zoom,
  u: () => back(),
  s: () => send("skip"),
  b: () => send("bad"),
  Enter: submit,
};

function move(i, by) {
  update(shift(state, i, by), "");
  say(`Image ${LETTERS[i]}: ${spoken(state, i)}`);
}

function tie(i) {
  update(tieLeft(state, i), "");
  say(`Image ${LETTERS[i]}: ${spoken(state, i)}`);
}

function back() {
  if (!state.past.length) return say("Nothing to undo.");
  return update(undo(state), "Undone.");
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || $("zoom").open) return;
  if (event.repeat && event.key === "Enter") return event.preventDefault(); // a key that is held
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const control = event.target.closest("button, a, summary, select, input, textarea");
  if (control && (key === "Enter" || key === " " || control.matches("select, input, textarea"))) return;
  if (event.target.closest(".scroll") && key.startsWith("Arrow")) return;
  if (revealing) {
    if (key === "Enter") next();
    return;
  }
  if (!set || busy || (key.length === 1 && key !== " " && !$("shortcuts").checked)) return;
  const i = current();
  if (/^[1-8]$/.test(key)) rank(i, Number(key));
  else if (key in ACTIONS && !(event.repeat && "sb".includes(key))) ACTIONS[key](i);
  else return;
  event.preventDefault();
}

function onClick(event) {
  const one = event.target.closest(".card");
  if (!one) return;
  const i = Number(one.dataset.image);
  cards().forEach((other, n) => other.setAttribute("tabindex", n === i ? "0" : "-1"));
  const button = event.target.closest("button");
  if (button?.dataset.rank) {
    const value = Number(button.dataset.rank);
    rank(i, state.ranks[i] === value ? null : value);
  } else if (button?.classList.contains("flip")) toggleFlip(i);
  else if (button?.classList.contains("zoom")) zoom(i);
}

let polling = null;
async function showBoard(key) {
  clearTimeout(polling);
  $("board-select").value = key;
  let wait = 5000;
  try {
    const found = await board(key);
    drawBoard(found);
    if (!found.fresh) wait = 1200;
  } catch {
    $("board-note").textContent = "The board cannot be read just now.";
  }
  clearTimeout(polling);
  polling = setTimeout(() => (document.hidden ? null : showBoard($("board-select").value)), wait);
}

function wire() {
  $("keys").append(...KEYS.flatMap(([key, text]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, text)]));
  document.addEventListener("keydown", onKey);
  $("images").addEventListener("click", onClick);
  $("submit").addEventListener("click", submit);
  $("undo").addEventListener("click", back);
  $("bad").addEventListener("click", () => send("bad"));
  $("skip").addEventListener("click", () => send("skip"));
  $("next").addEventListener("click", next);
  $("take-back").addEventListener("click", takeBack);
  $("zoom-close").addEventListener("click", () => $("zoom").close());
  $("zoom").addEventListener("keydown", (event) => {
    event.stopPropagation(); // the page would open it again
    if (event.key.toLowerCase() === "z") $("zoom").close();
  });
  $("board-select").addEventListener("change", (event) => showBoard(event.target.value));
  document.addEventListener("visibilitychange", () => !document.hidden && set && showBoard($("board-select").value));
  draggable($("vote"), {
    onDrop: (image, value) => {
      rank(image, value);
      focusCard(image);
    },
    mayDrag: () => !busy && !revealing,
  });
}

wire();
try {
  const visit = await begin();
  $("board-select").replaceChildren(...visit.boards.map((one) => element("option", { value: one.key }, one.title)));
  $("pick").hidden = visit.boards.length < 2;
  await load();
} catch (error) {
  complain(error);
}
