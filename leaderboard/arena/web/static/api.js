// Calls to the server. The token lives in this browser and says only that it is the same voter.

const KEEP = "quantarena-voter";
let token = null;
let session = null;

export class Refusal extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

async function post(path, body) {
  const headers = { "content-type": "application/json" };
  if (token) headers.authorization = `Bearer ${token}`;
  const reply = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const value = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Refusal(reply.status, value.error || `error ${reply.status}`);
  return value;
}

export async function begin() {
  try {
    token = localStorage.getItem(KEEP);
  } catch {
    token = null; // storage is switched off: a voter of this visit only
  }
  const value = await post("/api/session", {});
  token = value.token;
  session = value.session;
  try {
    localStorage.setItem(KEEP, token);
  } catch {
    // as above
  }
  return value;
}

export const askSet = (holding) => post("/api/set", { session, holding });

export const sendVote = (vote, holding) => insist("/api/vote", { ...vote, session, holding });
export const withdraw = (id, vote) => insist("/api/withdraw", { id, vote, session });

// Safe to send again: the server knows the id, and what it names counts once.
async function insist(path, body) {
  for (let wait = 500; ; wait *= 2) {
    try {
      return await post(path, body);
    } catch (error) {
      const again = !(error instanceof Refusal) || [429, 503].includes(error.status);
      if (!again || wait > 8000) throw error;
      await new Promise((done) => setTimeout(done, wait));
    }
  }
}

export async function board(key) {
  const reply = await fetch(`/api/board?board=${encodeURIComponent(key)}`);
  if (!reply.ok) throw new Refusal(reply.status, "the board is not there");
  return reply.json();
}

export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  // Only pages of a secure origin have randomUUID; a phone in the network is none.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

export function preload(set) {
  for (const src of [...set.images, set.reference]) {
    if (src) new Image().src = src;
  }
}
