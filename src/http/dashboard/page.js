// Keeps a page up to date. The server renders everything; each event carries the elements that have changed, by their ids.
"use strict";

const SILENCE_MS = 5000; // the server sends something once a second
const RETRY_MS = 2000;

const connection = document.getElementById("connection");
const events = document.body.dataset.events;

/** Makes `old` what `fresh` is, and touches as little as possible: focus, selection and transitions survive. */
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.id !== fresh.id) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) return void (old.nodeValue = fresh.nodeValue);
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  morphChildren(old, fresh);
}

function morphChildren(old, fresh) {
  const byId = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const known = child.id && byId.get(child.id);
    if (known) {
      if (known === at) at = at.nextSibling;
      else old.insertBefore(known, at);
      morph(known, child);
    } else if (at && !at.id && !child.id) {
      const next = at.nextSibling;
      morph(at, child);
      at = next;
    } else {
      old.insertBefore(child, at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/** Rows do not move away under the pointer or the focus: their figures change, their order waits. */
const waiting = new Map();
const isInUse = (element) => element.matches(":hover") || element.contains(document.activeElement);

function apply(id, html) {
  const old = document.getElementById(id);
  if (!old) return;
  const template = document.createElement("template");
  template.innerHTML = html;
  const fresh = template.content.firstElementChild;
  if (old.dataset.rows !== undefined && isInUse(old)) {
    waiting.set(id, html);
    for (const row of [...fresh.children]) {
      const known = document.getElementById(row.id);
      if (known) morph(known, row);
    }
    return;
  }
  waiting.delete(id);
  const focused = document.activeElement;
  morph(old, fresh);
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

function applyWaiting() {
  for (const [id, html] of [...waiting]) {
    const element = document.getElementById(id);
    if (element && !isInUse(element)) apply(id, html);
  }
}
document.addEventListener("pointerout", applyWaiting);
document.addEventListener("focusout", () => setTimeout(applyWaiting));

/** `connecting`, `live`, or `lost` with the time of the figures. Only a change is announced to screen readers. */
function show(state, text) {
  if (connection.dataset.state === state) return;
  connection.dataset.state = state;
  connection.querySelector("span").textContent = text;
  document.body.classList.toggle("stale", state === "lost");
}

let source, silence, retry;
let seen = new Date();

function receive({ data }) {
  clearTimeout(silence);
  silence = setTimeout(lost, SILENCE_MS);
  seen = new Date();
  const update = JSON.parse(data);
  if (update.release !== document.body.dataset.release) return location.reload();
  show("live", "Live");
  for (const [id, html] of update.changed) apply(id, html);
}

function lost() {
  show("lost", `Reconnecting. These figures are from ${seen.toTimeString().slice(0, 8)}.`);
  close();
  retry = setTimeout(open, RETRY_MS);
}

function close() {
  clearTimeout(silence);
  clearTimeout(retry);
  source?.close();
}

function open() {
  close();
  if (connection.dataset.state !== "lost") show("connecting", "Connecting");
  source = new EventSource(events);
  source.onmessage = receive;
  source.onerror = lost;
  silence = setTimeout(lost, SILENCE_MS);
}

if (events) {
  // A page that nobody looks at costs the server nothing.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open());
  if (!document.hidden) open();
}

// A choice is sent at once; without a script there is a button.
for (const select of document.querySelectorAll("select[data-submit]")) {
  select.addEventListener("change", () => select.form.requestSubmit());
}

// Parts that are read from the database: their page is asked for again, a while after its last answer.
async function refresh(part) {
  if (!document.hidden && !isInUse(part)) {
    try {
      const answer = await fetch(location.href);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById(part.id);
      if (fresh) morph(part, document.importNode(fresh, true));
    } catch {
      // The next attempt may succeed. What is shown stays.
    }
  }
  if (part.dataset.refresh) setTimeout(refresh, part.dataset.refresh * 1000, part);
}
for (const part of document.querySelectorAll("[data-refresh]")) setTimeout(refresh, part.dataset.refresh * 1000, part);
