// The page of one player: what the server says is shown, what the player does is sent.

import { $, Stage, colour, element, gauge, level, timeline } from "./drawing.js";

const stage = new Stage($("stage"));
const me = { world: null, frame: null, held: [[]], steered: 0, number: 0, heights: [], keys: new Set(), truth: true };
const waiting = []; // actions whose pictures are still to come: number and time of the key
export const latencies = [];
window.tokenwm = { me, stage, latencies }; // to look into from outside
let socket = null;

function say(text, seconds = 5) {
  $("note").textContent = text;
  $("note").hidden = !text;
  clearTimeout(say.timer);
  if (seconds) say.timer = setTimeout(() => ($("note").hidden = true), 1000 * seconds);
}

const send = (type, fields = {}) => socket?.readyState === 1 && socket.send(JSON.stringify({ type, ...fields }));

// ---- what comes

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/play`);
  socket.binaryType = "arraybuffer";
  let last = Promise.resolve();
  socket.onmessage = ({ data }) => (last = last.then(() => receive(data)).catch((error) => say(String(error))));
  socket.onclose = ({ reason }) => say(`${reason || "the server has gone"}; reload to play on`, 0);
}

async function receive(data) {
  const length = new DataView(data).getUint32(0, true);
  const message = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let at = 4 + length;
  const blobs = message.pictures.map((size) => new Blob([new Uint8Array(data, (at += size) - size, size)], { type: "image/png" }));
  await { welcome, frame, look, note: (m) => say(m.text), saved: (m) => say(`saved as ${m.path}`) }[message.type](message, blobs);
}

function welcome(world, blobs) {
  me.world = world;
  document.title = `${world.name} – tokenwm play`;
  $("name").textContent = world.name;
  $("robot").textContent = `${world.rate} Hz${world.controls.repeats > 1 ? ` × ${world.controls.repeats}` : ""}`;
  $("decoding").textContent = world.decoding;
  $("doubt-name").textContent = world.trust.doubt.name;
  $("doubt").setAttribute("aria-label", world.trust.doubt.name);
  $("save").hidden = !world.saves;
  $("action-units").textContent = world.controls.units;
  makeControls(world.controls);
  makeState(world.state);
  $("gallery").replaceChildren(...world.starts.map((start, number) => {
    const image = element("img", { src: URL.createObjectURL(blobs[number]), alt: "" });
    const label = `${start.episode}, step ${start.step}`;
    const button = element("button", { title: label, ariaLabel: label }, image);
    button.onclick = () => beginAt(start.episode, start.step);
    return button;
  }));
  $("episode").replaceChildren(...Object.keys(world.episodes).map((key) => new Option(key)));
  $("any").hidden = !Object.keys(world.episodes).length;
  if (!world.starts.length) $("begin").showModal();
}

async function frame(message, blobs) {
  me.frame = message;
  const { step, futures, truth } = message, world = me.world;
  if (step < 0) return send("shown", { number: message.number });
  me.steered = Math.min(me.steered, futures - 1);
  if (!me.touched || message.held.length !== me.held.length) me.held = message.held.map((action) => [...action]);
  const seconds = (step / world.rate).toFixed(1);
  const shown = blobs.length - truth;
  const kinds = [], captions = [];
  for (let row = 0; row < shown; row++) {
    kinds.push(`${step ? "imagined" : "seen"}${shown > 1 && row !== me.steered ? " other" : ""}`);
    captions.push(step ? `${shown > 1 ? `${"AB"[row]} ` : ""}imagined · step ${step} · ${seconds} s` : "observed · step 0");
  }
  if (truth && me.truth) {
    kinds.push("truth");
    captions.push("what really happened");
  }
  await stage.show(blobs.slice(0, kinds.length), captions, kinds);
  measure(message.act);
  send("shown", { number: message.number });
  rings();
  readings(message, shown);
}

// From the key to the frame that shows its action.
function measure(act) {
  const now = performance.now();
  while (waiting.length && waiting[0].number <= (act ?? -1)) latencies.push(now - waiting.shift().time);
  const recent = latencies.slice(-20).sort((a, b) => a - b);
  $("latency").textContent = recent.length ? Math.round(recent[recent.length >> 1]) : "–";
}

// The learned doubt says whether a model knows; without it there is only how sure it is of itself.
const VERDICTS = {
  Doubt: ["The model knows this", "Hardly known ground", "The model no longer knows"],
  Uncertainty: ["The model is sure of itself", "The model is unsure", "The model no longer knows"],
};

function readings(message, shown) {
  const { step, rate, futures } = message, { trust } = me.world, row = Math.min(me.steered, shown - 1);
  const doubt = message.doubt?.[row], surprise = message.surprise?.[row];
  gauge("doubt", doubt, trust.doubt);
  gauge("surprise", surprise, trust.surprise);
  const height = step ? level(doubt, trust.doubt) : 0;
  $("verdict").style.setProperty("--level", colour(height));
  $("verdict").textContent = !step ? "Observed: nothing imagined yet" : height == null ? "Nobody measured what is usual"
    : VERDICTS[trust.doubt.name][height >= 1 ? 2 : height > 0.6 ? 1 : 0];
  me.heights.length = step + 1;
  me.heights[step] = step ? height : undefined;
  timeline($("timeline"), me.heights);
  $("scrub").max = step;
  $("scrub").value = step;
  $("clock").textContent = `step ${step} · ${(step / me.world.rate).toFixed(1)} s · luck ${message.seed}`;
  $("rate").textContent = message.playing && rate ? rate.toFixed(1) : "–";
  $("play").textContent = message.playing ? "❚❚ Pause" : "▶ Play";
  $("compare").setAttribute("aria-pressed", futures > 1);
  $("follow").setAttribute("aria-pressed", message.follows);
  $("follow").disabled = !message.can_follow && !message.follows;
  $("undo").disabled = $("again").disabled = !step;
  for (const [number, value] of (message.state?.[row] ?? []).entries()) {
    $("state").children[number].lastChild.textContent = short(value);
    if (me.world.controls.place) $("controls").children[number].lastChild.textContent = short(value);
  }
  const taken = message.taken?.[row];
  if (message.follows && taken) showAction(taken);
  else showAction(me.held[me.steered] ?? []);
  const outcome = [];
  if (taken) outcome.push(`action given ${taken.slice(0, 4).map(short).join(", ")}${taken.length > 4 ? ", …" : ""}`);
  if (message.reward) outcome.push(`reward ${message.reward[row].toFixed(2)}`);
  if (message.ends?.[row] > 0.5) outcome.push("the episode ends here, it thinks");
  if (message.milliseconds) outcome.push(`${Math.round(message.milliseconds)} ms a step`);
  $("outcome").textContent = outcome.join(" · ");
}

const short = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(Math.abs(value) < 10 ? 2 : 1));

// ---- what is chosen

function makeControls({ dimensions, discrete, table, place, repeats }) {
  $("how").textContent = (discrete ? "Press a button, or 1 – 9." : table ? "Point at the picture, or use arrow keys."
    : "Sliders; arrow keys and a gamepad move the first two.") + (repeats > 1 ? ` Held for ${repeats} actions of the robot.` : "");
  $("controls").replaceChildren(...dimensions.map((dimension, number) => (discrete ? buttons : slider)(dimension, number)));
  const spans = ["", "", "action", "state"].map((text) => element("span", {}, text));
  if (place) $("controls").before(element("div", { className: "dimension both head" }, ...spans));
}

function slider({ name, low, high }, number) {
  const input = element("input", { type: "range", min: low, max: high, step: "any", ariaLabel: name });
  input.oninput = () => choose(number, Number(input.value));
  // Of a place, the state that it is wanted for stands beside it.
  const { place } = me.world.controls, row = [element("span", {}, name), input, element("output")];
  if (place) row.push(element("output"));
  return element("label", { className: place ? "dimension both" : "dimension", title: name }, ...row);
}

function buttons({ name, high }, number) {
  const all = Array.from({ length: high + 1 }, (_, id) => {
    const button = element("button", { ariaLabel: `${name}: ${id}` }, String(id));
    button.onclick = () => choose(number, id);
    return button;
  });
  return element("div", { className: "choices" }, ...all);
}

function makeState(state) {
  $("state-title").hidden = $("state").hidden = !state || me.world.controls.place;
  if (!state) return;
  $("state-units").textContent = state.units === me.world.controls.units ? "" : state.units;
  $("state").replaceChildren(...state.dimensions.map(({ name }) =>
    element("div", { title: name }, element("dt", {}, name), element("dd", {}, "–"))));
  $("picture-state").replaceChildren(...state.dimensions.map(({ name }) =>
    element("label", {}, `${name} `, element("input", { type: "number", step: "any", value: 0 }))));
}

function showAction(action) {
  me.world.controls.dimensions.forEach((_, number) => {
    const row = $("controls").children[number];
    if (me.world.controls.discrete) [...row.children].forEach((button, id) => button.setAttribute("aria-pressed", id === action[number]));
    else {
      if (document.activeElement !== row.children[1]) row.children[1].value = action[number];
      row.children[2].textContent = short(action[number] ?? 0);
    }
  });
}

function choose(number, value, time = performance.now()) {
  const { low, high } = me.world.controls.dimensions[number], action = me.held[me.steered];
  const bounded = Math.min(high, Math.max(low, value));
  if (!action || action[number] === bounded) return;
  action[number] = bounded;
  me.touched = true;
  if (!choose.time) {
    choose.time = time;
    queueMicrotask(act);
  }
}

function act() {
  send("act", { actions: me.held, number: ++me.number });
  if (me.frame?.playing) waiting.push({ number: me.number, time: choose.time });
  choose.time = 0;
  if (me.frame?.follows) send("follow", { on: false });
  showAction(me.held[me.steered]);
  rings();
}

// An action on a table ↔ a place on the picture, both over the range of the training data.
function placeOf(action) {
  const [x, y] = me.world.controls.dimensions.map(({ low, high }, number) => (action[number] - low) / (high - low));
  return [x, me.world.controls.down ? y : 1 - y];
}

function rings() {
  if (!me.world.controls.table) return;
  const taken = me.frame?.follows ? me.frame.taken : null;
  for (let row = 0; row < stage.figures.length; row++) {
    const action = (taken ?? me.held)[row];
    stage.ring(row, row < (me.frame?.futures ?? 1) && action ? placeOf(action) : null, me.world.cameras.length);
  }
}

function point(event) {
  const figure = event.target.closest("figure"), row = stage.figures.indexOf(figure);
  if (row < 0 || row >= me.frame.futures || !(event.buttons & 1)) return;
  if (row !== me.steered) steer(row);
  if (!me.world.controls.table) return;
  const box = figure.getBoundingClientRect(), [first, second] = me.world.controls.dimensions;
  const x = (event.clientX - box.left) / box.width * me.world.cameras.length, y = (event.clientY - box.top) / box.height;
  choose(0, first.low + x * (first.high - first.low));
  choose(1, second.low + (me.world.controls.down ? y : 1 - y) * (second.high - second.low));
  event.preventDefault();
}
$("stage").addEventListener("pointerdown", (event) => { event.target.closest("figure")?.setPointerCapture?.(event.pointerId); point(event); });
$("stage").addEventListener("pointermove", point);

function steer(row) {
  me.steered = row;
  stage.figures.forEach((figure, number) => figure.classList.toggle("other", number < me.frame.futures && number !== row));
}

// Arrow keys and sticks: places move while they are held, other actions last as long as the key.
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 1], ArrowDown: [1, -1] };
const SPEED = 0.8, NUDGE = 0.04; // of the range: a second, and at once

function push(number, amount, time) {
  const { low, high } = me.world.controls.dimensions[number];
  const action = me.held[me.steered];
  if (action) choose(number, action[number] + amount * (high - low), time);
}

function arrow(key) {
  const [number, sign] = ARROWS[key], { controls } = me.world;
  return [number, number === 1 && controls.table && controls.down ? -sign : sign];
}

function press(key, time) {
  const [number, sign] = arrow(key), { dimensions, place } = me.world.controls;
  if (number >= dimensions.length) return;
  if (place) push(number, NUDGE * sign, time);
  else choose(number, sign > 0 ? dimensions[number].high : dimensions[number].low, time);
}

function release(key) {
  const [number] = arrow(key), { dimensions, place, discrete } = me.world.controls, { low, high } = dimensions[number] ?? {};
  if (place || discrete || number >= dimensions.length) return;
  const other = [...me.keys].find((held) => arrow(held)[0] === number);
  if (other) press(other); // still held
  else choose(number, low <= 0 && high >= 0 ? 0 : (low + high) / 2);
}

let before = performance.now();
function tick(now) {
  requestAnimationFrame(tick); // first: whatever goes wrong below, keys stay alive
  const seconds = Math.min(0.1, (now - before) / 1000);
  before = now;
  if (me.world && me.frame && !me.world.controls.discrete) {
    const { place, dimensions } = me.world.controls;
    if (place) for (const key of me.keys) if (arrow(key)[0] < dimensions.length) push(arrow(key)[0], SPEED * seconds * arrow(key)[1]);
    const pad = navigator.getGamepads?.().find((one) => one);
    pad?.axes.slice(0, dimensions.length).forEach((axis, number) => {
      const value = number === 1 && !(me.world.controls.table && me.world.controls.down) ? -axis : axis;
      const { low, high } = dimensions[number], strong = Math.abs(value) > 0.15;
      if (place && strong) push(number, SPEED * seconds * value);
      if (!place && (strong || tick.strong?.[number])) choose(number, (low + high) / 2 + (strong ? value : 0) * (high - low) / 2);
      (tick.strong ??= {})[number] = strong;
    });
  }
}
requestAnimationFrame(tick);

// ---- buttons and keys

function beginAt(episode, step) {
  me.touched = false;
  me.heights.length = 0;
  $("begin").close();
  send("begin", { episode, step });
}

const back = (to) => send("back", { to: Math.max(0, to) });
const commands = {
  play: () => send("play", { on: !me.frame?.playing }),
  step: () => send("step"),
  undo: (event) => back(me.frame.step - (event?.shiftKey ? 10 : 1)),
  again: () => back(0),
  luck: () => send("luck", { seed: me.frame.seed + 1 }),
  compare: () => send("compare", { on: me.frame.futures < 2, keep: me.steered }),
  follow: () => send("follow", { on: !me.frame.follows }),
  truth: () => {
    me.truth = !me.truth;
    $("truth").setAttribute("aria-pressed", me.truth);
    if (me.frame) send("follow", { on: me.frame.follows }); // shows it again
  },
  save: () => send("save"),
  "begin-open": () => { openPicture(); $("begin").showModal(); },
  "help-open": () => $("help").showModal(),
};
for (const [name, command] of Object.entries(commands)) $(name).addEventListener("click", command);
const LETTERS = { " ": "play", ".": "step", Backspace: "undo", r: "again", l: "luck", c: "compare", f: "follow", t: "truth", s: "save", b: "begin-open", "?": "help-open" };

addEventListener("keydown", (event) => {
  const inField = event.target.closest("input, select, dialog");
  if (!me.frame || event.ctrlKey || event.metaKey || event.altKey || inField) return;
  if (event.key === " " && event.target.closest("button")) return; // presses the button
  const time = event.timeStamp, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in ARROWS && !me.world.controls.discrete) {
    if (!me.keys.has(key)) press(key, time);
    me.keys.add(key);
  } else if (key >= "1" && key <= "9" && me.world.controls.discrete) choose(0, Number(key) - 1, time);
  else if (key === "x" && me.frame.futures > 1) steer(1 - me.steered);
  else if (key in LETTERS) { if (!$(LETTERS[key]).disabled && !$(LETTERS[key]).hidden) commands[LETTERS[key]](event); }
  else return;
  event.preventDefault();
});
addEventListener("keyup", ({ key }) => { if (me.keys.delete(key)) release(key); });
addEventListener("blur", () => [...me.keys].forEach((key) => me.keys.delete(key) && release(key)));
$("scrub").addEventListener("change", (event) => back(Number(event.target.value)));
$("scrub").addEventListener("input", (event) => ($("clock").textContent = `back to step ${event.target.value}`));

// ---- where to begin

function look(_, [blob]) {
  URL.revokeObjectURL($("look").src);
  $("look").src = URL.createObjectURL(blob);
}

function lookAt() {
  const episode = $("episode").value;
  $("episode-step").max = (me.world.episodes[episode] ?? 1) - 1;
  $("episode-step-value").textContent = $("episode-step").value;
  send("look", { episode, step: Number($("episode-step").value) });
}
$("episode").onchange = $("episode-step").oninput = lookAt;
$("begin-any").onclick = () => beginAt($("episode").value, Number($("episode-step").value));

function openPicture() {
  (me.frame?.state?.[0] ?? []).forEach((value, number) => ($("picture-state").children[number].lastChild.value = value.toFixed(3)));
  if ($("episode").value) lookAt();
}
$("picture").onchange = () => {
  const [file] = $("picture").files, most = me.world.most_bytes - 4096; // the state goes along
  if (file?.size > most) say(`the picture has ${file.size} bytes; at most ${most} are read`);
  $("begin-picture").disabled = !file || file.size > most;
};
$("begin-picture").onclick = async () => {
  const state = [...$("picture-state").querySelectorAll("input")].map((input) => Number(input.value));
  me.touched = false;
  me.heights.length = 0;
  socket.send(new Blob([JSON.stringify(state), "\n", $("picture").files[0]]));
  $("begin").close();
};

// ---- light and dark

const dark = matchMedia("(prefers-color-scheme: dark)");
const paint = (isDark) => (document.documentElement.dataset.theme = isDark ? "dark" : "light");
paint(dark.matches);
dark.onchange = () => paint(dark.matches);
$("theme").onclick = () => paint(document.documentElement.dataset.theme !== "dark");

// A page that the browser keeps behind its back button would go on playing.
addEventListener("pagehide", () => socket.close());
addEventListener("pageshow", (event) => event.persisted && location.reload());
connect();
