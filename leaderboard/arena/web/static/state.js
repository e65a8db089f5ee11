// What the voter has done with a set. Pure: every function returns a new state.
// ranks[i] is the rank of image i, from 1 for the best, or null while it is not placed.

export const LETTERS = "ABCDEFGH";

export function start(size) {
  return { ranks: Array(size).fill(null), past: [] };
}

function changed(state, ranks) {
  if (ranks.every((rank, i) => rank === state.ranks[i])) return state;
  return { ranks, past: [...state.past, state.ranks] };
}

export function place(state, image, rank) {
  const size = state.ranks.length;
  const ranks = [...state.ranks];
  ranks[image] = rank === null ? null : Math.min(Math.max(rank, 1), size);
  return changed(state, ranks);
}

// One rank better (-1) or worse (+1). An image that is not placed comes in at the end it moves from.
export function shift(state, image, by) {
  const rank = state.ranks[image];
  if (rank === null) return place(state, image, by < 0 ? state.ranks.length : 1);
  return place(state, image, rank + by);
}

// The same rank as the image on the left; the left one is placed too if it was not.
export function tieLeft(state, image) {
  if (image === 0) return state;
  const ranks = [...state.ranks];
  const rank = ranks[image - 1] ?? ranks[image] ?? 1;
  ranks[image - 1] = ranks[image] = rank;
  return changed(state, ranks);
}

export function undo(state) {
  if (!state.past.length) return state;
  return { ranks: state.past.at(-1), past: state.past.slice(0, -1) };
}

export function unplaced(state) {
  return state.ranks.flatMap((rank, i) => (rank === null ? [i] : []));
}

// Tiers as positions, the best first: empty ranks vanish, images without a place tie for last.
export function tiers(state) {
  const size = state.ranks.length;
  const found = Array.from({ length: size + 1 }, () => []);
  state.ranks.forEach((rank, i) => found[rank === null ? size : rank - 1].push(i));
  return found.filter((tier) => tier.length);
}

// One image above all others is a choice of the best, everything else an order.
export function mode(state) {
  const made = tiers(state);
  const best = unplaced(state).length === state.ranks.length - 1;
  return best && made.length === 2 && made[0].length === 1 ? "best" : "rank";
}

export function spoken(state, image) {
  const rank = state.ranks[image];
  if (rank === null) return "not placed";
  const others = state.ranks.flatMap((r, i) => (r === rank && i !== image ? [LETTERS[i]] : []));
  return `rank ${rank}${others.length ? `, tied with ${others.join(" and ")}` : ""}`;
}
