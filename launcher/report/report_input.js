// Moving about in the timeline: wheel, drag, pinch, keys, buttons; and the words for what is under the pointer.
(() => {
  if (!timeline) return;
  const { root, canvas, data, show, tickAt } = timeline;
  const tip = document.getElementById("tip");
  const CLICK = 4; // pixels that a pointer may move and still not drag
  const pointers = new Map();
  let grabbed = null, scrolled = 0;

  function zoom(factor, at) {
    const [begin, end] = timeline.view();
    const fixed = at === undefined ? (begin + end) / 2 : at;
    show(fixed - (fixed - begin) * factor, fixed + (end - fixed) * factor);
  }

  function pan(ticks) {
    const [begin, end] = timeline.view();
    const by = Math.max(-begin, Math.min(data.length - end, ticks));
    show(begin + by, end + by);
  }

  function span() { const [begin, end] = timeline.view(); return end - begin; }

  const moves = {
    in: () => zoom(0.5), out: () => zoom(2), all: () => show(0, data.length), window: () => show(...timeline.window()),
    left: () => pan(-0.15 * span()), right: () => pan(0.15 * span()),
  };
  const keys = { "+": "in", "=": "in", ArrowUp: "in", "-": "out", ArrowDown: "out", ArrowLeft: "left", ArrowRight: "right", 0: "all", Home: "all", g: "window" };

  function place(event) { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; }

  function explain(px, py) {
    const text = timeline.describe(px, py);
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const left = Math.min(px + 14, root.clientWidth - tip.offsetWidth);
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${py + 18}px`;
  }

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    moves[keys[event.key]]();
  });
  for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", moves[button.dataset.view]);

  // A page that is being scrolled goes on scrolling when the timeline comes under the pointer.
  window.addEventListener("scroll", () => { scrolled = performance.now(); }, { passive: true });
  canvas.addEventListener("wheel", (event) => {
    const wholeRun = span() >= data.length * 0.9999;
    const scrolling = performance.now() - scrolled < 250;
    if (!event.ctrlKey && (scrolling || (wholeRun && event.deltaY > 0))) return;
    event.preventDefault();
    tip.hidden = true;
    const pixels = event.deltaMode ? 16 : 1;
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
      pan((event.deltaX || event.deltaY) * pixels / canvas.clientWidth * span());
    } else {
      zoom(Math.exp(Math.max(-120, Math.min(120, event.deltaY * pixels)) * 0.003), tickAt(place(event)[0]));
    }
  }, { passive: false });

  canvas.addEventListener("pointerdown", (event) => {
    const [px, py] = place(event);
    pointers.set(event.pointerId, px);
    canvas.setPointerCapture(event.pointerId);
    grabbed = { px, view: timeline.view(), selecting: py < timeline.axis || event.shiftKey, moved: false };
    root.focus({ preventScroll: true });
  });

  canvas.addEventListener("pointermove", (event) => {
    const [px, py] = place(event);
    if (!pointers.has(event.pointerId)) return explain(px, py);
    if (pointers.size === 2) return pinch(event.pointerId, px);
    pointers.set(event.pointerId, px);
    if (!grabbed || Math.abs(px - grabbed.px) < CLICK && !grabbed.moved) return undefined;
    grabbed.moved = true;
    tip.hidden = true;
    if (grabbed.selecting) return timeline.select([grabbed.px, px].sort((a, b) => a - b));
    root.classList.add("dragging");
    const [begin, end] = grabbed.view, perPixel = tickAt(1) - tickAt(0);
    const by = Math.max(-begin, Math.min(data.length - end, (grabbed.px - px) * perPixel));
    return show(begin + by, end + by);
  });

  function pinch(id, px) {
    const [other] = [...pointers].filter(([key]) => key !== id).map(([, value]) => value);
    const before = Math.max(20, Math.abs(pointers.get(id) - other)), now = Math.max(20, Math.abs(px - other));
    pointers.set(id, px);
    grabbed = null;
    zoom(before / now, tickAt((px + other) / 2));
  }

  function release(event) {
    const [px, py] = place(event);
    pointers.delete(event.pointerId);
    root.classList.remove("dragging");
    if (grabbed && grabbed.moved && grabbed.selecting && event.type === "pointerup") {
      const [begin, end] = [tickAt(grabbed.px), tickAt(px)].sort((a, b) => a - b);
      show(begin, end);
    } else if (grabbed && !grabbed.moved) explain(px, py); // a tap
    if (grabbed && grabbed.selecting) timeline.select(null);
    grabbed = null;
  }
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("dblclick", (event) => zoom(event.shiftKey ? 2 : 0.5, tickAt(place(event)[0])));

  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", timeline.resize);
  for (const moment of ["beforeprint", "afterprint"]) window.addEventListener(moment, timeline.resize);
  window.matchMedia("print").addEventListener("change", timeline.resize);
})();
