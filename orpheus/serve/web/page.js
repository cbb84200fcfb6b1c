"use strict";
// The page: what is typed becomes a request; its answer is played, drawn and kept. Whatever comes from outside is put
// in as text, never as HTML. Only the API key is stored, for as long as this tab is open.

const $ = (id) => document.getElementById(id);
const FEW_TAGS = 14;
const still = matchMedia("(prefers-reduced-motion: reduce)");

const player = new Player(() => finished("Done."));
const picture = new Picture($("picture"));
const server = { known: false, model: null, limit: null };
const fetching = new Set(); // downloads under way, as their AbortControllers
let run = null; // the request whose speech is coming in: {abort, entry}
let shown = null; // the entry in the picture

// ---- talking to the server ----

/** What the server refused, in words for the user. */
class Refused extends Error {}

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

/** The response, or an Error that says what to do. */
async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { headers: headers(), ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server can't be reached. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const said = body?.error?.message ?? `The server answered ${response.status} ${response.statusText}`.trim();
  const wait = response.headers.get("Retry-After");
  if (response.status === 401) {
    $("access").open = true;
    throw new Refused(`The server wants a valid API key: enter it under “API key”. (${said})`);
  }
  if (response.status === 429) throw new Refused(`The server is busy${wait ? `: try again in ${wait} s` : ""}. (${said})`);
  throw new Refused(said);
}

const speech = (body, signal) => ask("v1/audio/speech", { method: "POST", body: JSON.stringify(body), signal });

/** Ask what the server has, and fill the form with it. */
async function meet(signal) {
  const get = async (path) => (await ask(path, { signal })).json();
  const [voices, models] = await Promise.all(["v1/audio/voices", "v1/models"].map(get));
  server.known = true;
  server.model = models.data?.[0]?.id ?? null;
  server.limit = voices.max_input_chars ?? null;
  $("model").textContent = server.model ?? "";
  const names = (voices.voices ?? []).map((voice) => voice.id);
  $("voice").replaceChildren(...(names.length ? names : [""]).map((name) => new Option(name || "the model's own", name)));
  $("voice").value = voices.default ?? names[0] ?? "";
  offer(voices.tags ?? []);
  count();
}

async function meetOrComplain() {
  try {
    await meet();
    complain("");
  } catch (error) {
    complain(error.message);
  }
}

// ---- the form ----

function count() {
  const length = [...$("text").value].length;
  const { limit } = server;
  $("count").textContent = limit ? `${length.toLocaleString("en")} of ${limit.toLocaleString("en")} characters`
                                 : `${length.toLocaleString("en")} characters`;
  $("count").classList.toggle("over", limit !== null && length > limit);
}

/** Buttons for the tags; the many of a model with many languages are behind one more button. */
function offer(tags) {
  const make = (label, press) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
    button.addEventListener("click", () => press(button));
    return button;
  };
  const buttons = (some) => some.map((tag) => make(tag, () => insert(tag)));
  const more = make(`${tags.length - FEW_TAGS} more…`, (button) => {
    const rest = buttons(tags.slice(FEW_TAGS));
    button.replaceWith(...rest);
    rest[0].focus();
  });
  const all = tags.length <= FEW_TAGS + 2;
  $("tags").replaceChildren(...buttons(all ? tags : tags.slice(0, FEW_TAGS)), ...(all ? [] : [more]));
  $("tags").hidden = !tags.length;
}

/** Put a tag where the cursor is, with a space to each side. */
function insert(tag) {
  const text = $("text");
  const before = text.value.slice(0, text.selectionStart);
  const after = text.value.slice(text.selectionEnd);
  const padded = (/\S$/.test(before) ? " " : "") + tag + (/^\s/.test(after) ? "" : " ");
  text.setRangeText(padded, text.selectionStart, text.selectionEnd, "end");
  text.focus();
  count();
}

/**
 * The request that the form describes. Refused: what is wrong with it. It always has a seed: only then does the server
 * give the same speech again for a download. Without one, its guard may draw a piece twice.
 */
function request() {
  const input = $("text").value.trim();
  const seed = $("seed").value.trim();
  if (!input) throw new Refused("There is nothing to speak: write a text first.");
  if (seed && !(/^\d+$/.test(seed) && Number.isSafeInteger(Number(seed)))) {
    throw new Refused("The seed must be a whole number, like 7. Leave it empty for a fresh one.");
  }
  if (server.limit !== null && [...input].length > server.limit) {
    throw new Refused(`The text has ${[...input].length} characters, and this server takes ${server.limit}: shorten it.`);
  }
  const { value: voice } = $("voice");
  const fresh = crypto.getRandomValues(new Uint32Array(1))[0];
  return { model: server.model, input, ...(voice && { voice }), speed: Number($("speed").value), seed: seed ? Number(seed) : fresh };
}

// ---- speaking ----

async function speak() {
  halt();
  complain("");
  const mine = { abort: new AbortController(), entry: null };
  const clip = new Clip();
  run = mine;
  try {
    player.play(clip); // now, while a click or key allows it
    if (!server.known) await meet(mine.abort.signal);
    const asked = request();
    shown = { clip, heard: 0 };
    picture.show(clip);
    $("empty").hidden = true;
    $("picture").scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
    facts({});
    say("Waiting for the first audio…");
    update();
    await receive(mine, clip, asked);
  } catch (error) {
    if (error.name === "AbortError") return; // `halt` has said it
    clip.done = true;
    if (run === mine) run = null;
    if (mine.entry) {
      mine.entry.whole = false;
      describe(mine.entry, "broken off");
      complain(`The speech broke off after ${clip.seconds.toFixed(1)} s: ${error.message} What was heard is kept.`);
    } else {
      if (player.clip === clip) player.stop();
      say("Not spoken.");
      complain(error.message);
      if ($("access").open && !$("key").value) $("key").focus();
    }
  }
  update();
}

/** Read the answer to its end; play and draw it as it comes. */
async function receive(mine, clip, asked) {
  const started = performance.now();
  const since = () => (performance.now() - started) / 1000;
  const response = await speech({ ...asked, response_format: "pcm" }, mine.abort.signal);
  clip.note = decodeURIComponent(response.headers.get("X-Provenance") ?? "");
  const unknown = response.headers.get("X-Unknown-Words");
  if (unknown) complain(`The embedded voice does not know: ${decodeURIComponent(unknown)}`);
  const reader = response.body.getReader();
  const times = {};
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Refused("the connection to the server was lost.");
    });
    if (done) break;
    clip.push(value);
    if (!clip.length) continue;
    times.first ??= since();
    mine.entry ??= remember({ asked, clip, heard: 0, whole: true });
    if (player.clip === clip) player.pump();
    facts({ ...times, length: clip.seconds, factor: since() / clip.seconds });
    refresh();
  }
  if (!clip.length) throw new Refused("The server sent no audio.");
  clip.done = true;
  run = null;
  player.pump();
  facts({ ...times, length: clip.seconds, factor: since() / clip.seconds });
  describe(mine.entry);
  refresh();
}

/** Stop what is spoken, played or fetched. What was heard is kept. */
function halt() {
  for (const download of fetching) download.abort();
  if (run) {
    const { abort, entry } = run;
    run = null;
    abort.abort();
    if (shown) shown.clip.done = true;
    if (entry) {
      entry.clip.done = true;
      entry.whole = false;
      describe(entry, "stopped");
    }
  } else if (!player.clip) {
    return;
  }
  if (shown && player.clip) shown.heard = player.position;
  player.stop();
  finished("Stopped.");
}

function finished(words) {
  if (words === "Done." && shown) shown.heard = shown.clip.seconds;
  say(words);
  update();
  refresh();
}

// ---- what was spoken ----

/** Put an entry on top of the history. entry: {asked, clip, heard, whole}; the element is added to it. */
function remember(entry) {
  const item = $("entry").content.cloneNode(true).firstElementChild;
  const on = (name, press) => {
    const button = item.querySelector(name);
    button.setAttribute("aria-label", `${button.textContent}: ${entry.asked.input.slice(0, 60)}`);
    button.addEventListener("click", () => press(button));
  };
  item.querySelector(".said").textContent = entry.asked.input;
  on(".replay", () => replay(entry));
  on(".download", (button) => download(entry, button));
  on(".delete", () => forget(entry));
  entry.item = item;
  shown = entry;
  describe(entry);
  $("history").prepend(item);
  $("nothing").hidden = true;
  update();
  return entry;
}

function describe(entry, ended = "") {
  const { asked, clip } = entry;
  const parts = [asked.voice, asked.speed !== 1 && `${asked.speed} ×`, clip.done && `${clip.seconds.toFixed(1)} s`, `seed ${asked.seed}`, ended];
  entry.item.querySelector(".facts").textContent = parts.filter(Boolean).join(" · ");
}

function replay(entry) {
  if (run?.entry !== entry) halt();
  complain("");
  shown = entry;
  picture.show(entry.clip);
  facts({ length: entry.clip.seconds });
  $("empty").hidden = true;
  player.play(entry.clip);
  say("Speaking…");
  update();
  refresh();
}

function forget(entry) {
  if (run?.entry === entry || player.clip === entry.clip) halt();
  const next = entry.item.nextElementSibling ?? entry.item.previousElementSibling;
  entry.item.remove();
  $("nothing").hidden = $("history").children.length > 0;
  (next?.querySelector(".delete") ?? $("text")).focus();
  if (shown === entry) {
    shown = null;
    picture.show(null);
    facts({});
    $("empty").hidden = false;
    say("Ready.");
    refresh();
  }
}

/** Save an entry as a file. WAV and PCM are made here; for the others the server speaks it again, by the same seed. */
async function download(entry, button) {
  const format = $("format").value;
  const mine = new AbortController();
  complain("");
  try {
    let data;
    if (format === "wav") data = entry.clip.wav();
    else if (format === "pcm") data = new Blob([entry.clip.pcm()]);
    else {
      fetching.add(mine);
      button.setAttribute("aria-busy", "true");
      say(entry.whole ? `Fetching ${format}…` : `Fetching ${format}, the whole text…`);
      update();
      const whole = { ...entry.asked, response_format: format, stream: false }; // a file that tells its length
      data = await (await speech(whole, mine.signal)).blob();
      say("Fetched.");
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(data);
    link.download = `speech-${entry.asked.seed}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } catch (error) {
    say("Not downloaded.");
    if (error.name !== "AbortError") complain(error instanceof Refused ? error.message : "The connection was lost: nothing was saved.");
  } finally {
    fetching.delete(mine);
    button.removeAttribute("aria-busy");
    update();
  }
}

// ---- showing ----

function say(words) {
  if ($("status").textContent !== words) $("status").textContent = words;
}

function complain(words) {
  $("error").textContent = words;
  $("error").hidden = !words;
}

function facts({ first, length, factor }) {
  $("first").textContent = first === undefined ? "–" : `${first.toFixed(2)} s`;
  $("length").textContent = length === undefined ? "–" : `${length.toFixed(1)} s`;
  $("factor").textContent = factor === undefined ? "–" : factor.toFixed(2);
}

/** What can be stopped, and which entry sounds. */
function update() {
  const idle = !run && !player.clip && !fetching.size;
  if (idle && document.activeElement === $("stop")) $("speak").focus(); // a disabled button would lose the focus
  $("stop").disabled = idle;
  for (const item of $("history").children) item.classList.toggle("playing", item === shown?.item && player.clip !== null);
}

let due = false;
/** Draw soon. */
function refresh() {
  if (due) return;
  due = true;
  requestAnimationFrame(frame);
}

function frame() {
  due = false;
  if (player.clip && shown) {
    shown.heard = player.position;
    if (shown.clip.length) say(player.waiting ? "Waiting for more…" : "Speaking…");
  }
  const more = picture.draw(shown?.heard ?? 0);
  $("clock").textContent = shown?.clip.length ? [shown.heard, shown.clip.seconds].map((s) => (s < 60 ? `${s.toFixed(1)} s` : clock(s))).join(" / ") : "";
  if (more || (player.clip && !still.matches)) refresh();
  else if (player.clip) setTimeout(refresh, 500);
}

// ---- the beginning ----

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
$("stop").addEventListener("click", halt);
$("text").addEventListener("input", count);
$("speed").addEventListener("input", () => {
  $("pace").textContent = `${$("speed").value} ×`;
  $("speed").setAttribute("aria-valuetext", `${$("speed").value} times`);
});
$("key").addEventListener("change", () => {
  try {
    sessionStorage.setItem("orpheus-key", $("key").value.trim());
  } catch {} // a browser that forbids it: the key is in the field all the same
  meetOrComplain();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    speak();
  } else if (event.key === "Escape") halt();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  picture.theme();
  refresh();
});
new ResizeObserver(refresh).observe($("picture"));
try {
  $("key").value = sessionStorage.getItem("orpheus-key") ?? "";
} catch {}
if (/Mac|iPhone|iPad/.test(navigator.platform)) $("modifier").textContent = "⌘";
count();
meetOrComplain();
