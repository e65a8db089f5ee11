// Dragging an image into a tier, by mouse, pen or finger.

import { LETTERS } from "./state.js";

const FAR = 6;

export function draggable(root, { onDrop, mayDrag }) {
  let drag = null;

  const tierAt = (x, y) => document.elementFromPoint(x, y)?.closest(".tier");

  const mark = (tier) => {
    document.querySelectorAll(".tier.target").forEach((one) => one.classList.remove("target"));
    tier?.classList.add("target");
  };

  const end = () => {
    drag?.ghost?.remove();
    mark(null);
    document.body.classList.remove("dragging");
    drag = null;
  };

  root.addEventListener("pointerdown", (event) => {
    const grip = event.target.closest(".grip");
    if (!grip || event.button !== 0 || !mayDrag()) return;
    const holder = grip.closest("[data-image]");
    drag = { id: event.pointerId, image: Number(holder.dataset.image), x: event.clientX, y: event.clientY };
    // A finger on a large image scrolls; it drags from the letter and from the small images.
    drag.scrolls = event.pointerType === "touch" && grip.classList.contains("frame");
  });

  document.addEventListener("pointermove", (event) => {
    if (!drag || event.pointerId !== drag.id || drag.scrolls) return;
    if (!drag.ghost) {
      if (Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < FAR) return;
      drag.ghost = document.createElement("div");
      drag.ghost.className = "ghost";
      drag.ghost.textContent = LETTERS[drag.image];
      document.body.append(drag.ghost);
      document.body.classList.add("dragging");
    }
    event.preventDefault();
    drag.ghost.style.translate = `${event.clientX + 8}px ${event.clientY + 8}px`;
    mark(tierAt(event.clientX, event.clientY));
    const edge = 60;
    if (event.clientY > innerHeight - edge) scrollBy(0, 12);
    if (event.clientY < edge) scrollBy(0, -12);
  });

  document.addEventListener("pointerup", (event) => {
    if (!drag || event.pointerId !== drag.id) return;
    const moved = Boolean(drag.ghost);
    const tier = moved ? tierAt(event.clientX, event.clientY) : null;
    const { image } = drag;
    end();
    if (tier) onDrop(image, Number(tier.dataset.rank));
  });
  document.addEventListener("pointercancel", end);
  addEventListener("blur", end);
}
