// The page: what a person does becomes commands, what the server tells becomes pictures and lines.

import { Curves } from "./curves.js";
import { Gamepad, padName } from "./gamepad.js";
import { Hands, elsewhere, keyName } from "./hands.js";
import { Moments } from "./moments.js";
import { Pace } from "./pace.js";
import { Futures, View } from "./views.js";
import { Wire } from "./wire.js";

const $ = (id) => document.getElementById(id);
const LONGEST = 4; // control steps of one message at most: where drawing is slow, pictures come less often
const RETRY_MS = 2000;
const PROGRESS = { link: "Going the way of the link", recorded: "Going the way of the recorded episode", film: "Drawing the film" };
const YOURS = "Yours: use the keys or the buttons.";

const moments = new Moments(() => redraw());
const futures = new Futures($("candidates"), $("plan-words"));
const pace = new Pace($("pace"));
let hello = null; // what the server told of the robot
let views = null;
let curves = null;
let hands = null;
let jaws = []; // what each gripper is commanded
let coast = 0; // control steps without motion that are still to be sent, so that the dream catches up
let acting = false; // whether the policy acts
let reply = 0; // seconds that a control step takes, drawn and all
let due = 0; // when the next message may be sent, so that nothing is faster than the robot
let timer = 0;
let drawing = 0;

// ------------------------------------------------------------------------------------------ what the server tells

const tellers = {
  hello(head) {
    const first = hello === null;
    hello = head;
    wire.session = head.session;
    $("env").textContent = head.env;
    document.title = `explore ${head.env}`;
    if (first) furnish();
    if (head.resumed && moments.now !== null) say(`Connected again. ${YOURS}`);
    else begin();
  },
  started(head) {
    moments.clear();
    futures.clear();
    jaws = hello.grippers.map(([, low]) => low);
    coast = 0;
    $("seed").value = head.seed;
    $("split").value = head.split;
    $("look").value = head.scene_look;
    $("instruction").value = head.instruction;
    $("warning").hidden = !head.warning;
    $("warning").textContent = head.warning ?? "";
    $("kept").textContent = "";
  },
  moment(head, pictures) {
    const moment = moments.add(head, pictures);
    pace.told(head);
    if (moment.action) jaws = hello.grippers.map(([index]) => moment.action[index]);
    if (acting && head.real.success && !moments.all.get(head.parent)?.real.success) {
      hand(false);
      say("It is done. Yours again.");
    }
    redraw();
  },
  seen(head) {
    Object.assign(moments.all.get(head.id), { seen: head.seen, points: head.points });
    redraw();
  },
  picture(head, pictures) {
    moments.put(moments.all.get(head.id), pictures);
    redraw();
  },
  plan(head, pictures) {
    const from = moments.before(moments.all.get(head.at), (each) => each.pictures.real[hello.cameras[0]]);
    const start = moments.images(from.pictures.real)[hello.cameras[0]];
    futures.show(head, pictures, start, head.steps / hello.hz, (candidate) => play(head.at, candidate));
  },
  progress(head) {
    say(`${PROGRESS[head.what]}: ${head.done} of ${head.of}`);
    $("stop").hidden = false;
  },
  link(head) {
    const address = `${location.origin}/${location.search}#${head.link}`;
    history.replaceState(null, "", address);
    const copied = navigator.clipboard?.writeText(address) ?? Promise.reject(new Error("no clipboard"));
    copied.then(() => { $("kept").textContent = "The link is copied, and stands in the address."; },
      () => { $("kept").textContent = "The link stands in the address: copy it from there."; });
  },
  saved(head) {
    $("kept").textContent = `Saved ${head.steps} steps as ${head.name} in ${head.folder}.`;
  },
  filmed(head) {
    $("kept").textContent = `Saved a film of ${head.steps} steps as ${head.name} in ${head.folder}.`;
  },
  error(head) {
    complain(head.text);
    hand(false);
    hands?.release();
    coast = 0;
  },
};

const wire = new Wire((head, pictures) => tellers[head.tell]?.(head, pictures), (words, forGood) => {
  hand(false);
  hands?.release();
  if (forGood) {
    complain(words);
    say("Not connected.");
  } else {
    say(`${words} Trying again …`);
    setTimeout(() => wire.open(), RETRY_MS);
  }
});

function begin() {
  say("Starting …");
  const link = location.hash.slice(1);
  const start = { do: "start", seed: hello.seed, split: hello.split, instruction: $("instruction").value, scene_look: 0 };
  ask(link ? { do: "restore", link } : start).then(() => {
    $("stop").hidden = true;
    if (moments.now !== null) say(YOURS);
    else if (link) ask(start); // the link was no good, which a message says
  });
}

/** Send a command when the one before is done. What it is about may have changed by then, so it may be a function. */
let queue = Promise.resolve();
function ask(command) {
  queue = queue.then(async () => {
    const found = typeof command === "function" ? command() : command;
    if (found && wire.ready) await wire.ask(found);
    pump();
  });
  return queue;
}

// ------------------------------------------------------------------------------------------ acting

/** Send what is to be done next, if anything is, and nothing is under way. */
function pump() {
  clearTimeout(timer);
  if (wire.busy || !wire.ready || moments.now === null) return;
  const early = due - performance.now();
  if (early > 0) {
    timer = setTimeout(pump, early);
    return;
  }
  const command = acting ? { do: "let", at: moments.now, who: $("who").value, candidates: $("plan").open } : drive();
  if (!command) return;
  $("stop").hidden = !acting;
  const sent = performance.now();
  const steps = command.actions?.length ?? 1;
  due = sent + 1000 * steps / hello.hz;
  ask(() => command).then(() => {
    const took = (performance.now() - sent) / 1000 / steps;
    if (!acting) reply = reply ? 0.7 * reply + 0.3 * took : took;
  });
}

/** What the hands do now, for as many control steps as one picture should cover; null where nothing is held. */
function drive() {
  if (hands.idle && !coast) return null;
  const still = [...hello.rest];
  hello.grippers.forEach(([index], i) => { still[index] = jaws[i]; });
  const moment = moments.shown;
  const left = hello.look - (moment.step % hello.look);
  let steps = Math.min(left, LONGEST, Math.max(1, Math.ceil(reply * hello.hz)));
  let action = still;
  if (!hands.idle) {
    action = hands.command(still, hello.rest, $("speed").value / 100);
    coast = (left - steps) % hello.look;
  } else {
    steps = Math.min(steps, coast);
    coast -= steps;
  }
  say(YOURS);
  return { do: "act", at: moment.id, actions: Array(steps).fill(action) };
}

function toggleJaws() {
  if (!hello?.grippers.length || moments.now === null) return;
  hand(false);
  jaws = hello.grippers.map(([, low, high], i) => (jaws[i] > (low + high) / 2 ? low : high));
  const left = hello.look - (moments.shown.step % hello.look);
  coast = left < hello.look / 2 ? left + hello.look : left; // jaws take their time
  showJaws();
  pump();
}

function hand(over) {
  if (acting === over) return;
  acting = over;
  if (!over) wire.stop();
  $("stop").hidden = true;
  showHand();
  pump();
}

function showHand() {
  $("hand").setAttribute("aria-pressed", String(acting));
  $("hand").firstElementChild.textContent = acting ? "Take over" : `Let the ${$("who").value} act`;
  say(acting ? `The ${$("who").value} acts.` : YOURS);
}

function showJaws() {
  if (!hands?.jaws) return;
  const [, low, high] = hello.grippers[0];
  hands.jaws.firstChild.textContent = jaws[0] > (low + high) / 2 ? "open the jaws " : "close the jaws ";
}

/** Carry out a candidate in both worlds, from where it was considered. */
function play(at, candidate) {
  hand(false);
  coast = 0;
  say("A future of the planner’s, in both worlds.");
  ask({ do: "play", at, candidate }).then(() => say(YOURS));
}

function seek(id) {
  if (id === undefined || id === moments.now) return;
  hand(false);
  coast = 0;
  moments.now = id;
  const { action } = moments.shown;
  jaws = hello.grippers.map(([index, low]) => (action ? action[index] : low));
  redraw();
  if (!moments.shown.pictures.real[hello.cameras[0]]) {
    ask(() => (moments.now === id && !moments.shown.pictures.real[hello.cameras[0]] ? { do: "look", at: id } : null));
  }
}

function reset() {
  hand(false);
  history.replaceState(null, "", `${location.pathname}${location.search}`);
  const [seed, scene_look] = ["seed", "look"].map((id) => $(id).valueAsNumber);
  const [split, instruction] = ["split", "instruction"].map((id) => $(id).value);
  if (!$("episode").reportValidity()) return;
  say("Starting …");
  ask({ do: "start", seed, split, instruction, scene_look }).then(() => say(YOURS));
}

// ------------------------------------------------------------------------------------------ showing

function redraw() {
  if (!drawing) drawing = requestAnimationFrame(show);
}

function show() {
  drawing = 0;
  const moment = moments.shown;
  if (!moment || !views) return;
  const { path, place } = moments;
  const first = hello.cameras[0];
  const drawn = moments.before(moment, (each) => each.pictures.real[first]);
  const looked = moments.looked(moment);
  const others = moments.before(moment, (each) => Object.keys(each.pictures.real).some((name) => name !== first));
  const dreamt = moments.images(looked.pictures.dream);
  const marks = $("points").checked;
  const { are, seen } = moment.points;
  const real = moments.images({ ...(others ?? drawn).pictures.real, [first]: drawn.pictures.real[first] });
  const task = moment.real.success ? "done" : moment.real.subtask;
  views.real.draw(real, marks ? { are: are ?? [], seen: seen ?? [] } : {}, task, false,
    $("pixels").checked ? dreamt[first]?.width : 0);
  const late = (moment.step - looked.step) / hello.hz;
  const doubt = moments.doubt(looked);
  const unsure = doubt > hello.unsure;
  views.dream.draw(dreamt, marks ? { dream: looked.points.dream ?? [] } : {},
    (late ? `${late.toFixed(2)} s behind` : "") + (unsure ? " unsure" : ""), unsure);

  pace.drawn(moment, drawn === moment && real[first], looked === moment && dreamt[first]);
  $("scrub").max = path.length - 1;
  $("scrub").value = place;
  const time = (step) => (step / hello.hz).toFixed(1);
  $("clock").textContent = `${time(moment.step)} of ${time(moments.all.get(path.at(-1)).step)} s`;
  $("scrub").setAttribute("aria-valuetext", `${time(moment.step)} seconds`);
  $("back").disabled = place <= 0;
  $("on").disabled = place >= path.length - 1;
  for (const id of ["save", "film"]) $(id).disabled = !moment.step;
  showBranches();
  showJaws();
  curves.draw();
}

function showBranches() {
  const { tips } = moments;
  const row = $("branches");
  row.hidden = tips.length < 2;
  if (row.hidden || row.dataset.shown === `${tips} ${moments.path.at(-1)}`) return;
  row.dataset.shown = `${tips} ${moments.path.at(-1)}`;
  row.replaceChildren("Branches ", ...tips.map((tip, i) => {
    const button = document.createElement("button");
    button.textContent = `${i + 1} (${(moments.all.get(tip).step / hello.hz).toFixed(1)} s)`;
    button.setAttribute("aria-pressed", tip === moments.path.at(-1));
    button.onclick = () => {
      const before = moments.now;
      moments.follow(tip);
      const there = moments.now;
      moments.now = before;
      seek(there);
      redraw();
    };
    return button;
  }));
}

function say(words) {
  $("state").textContent = words;
}

function complain(words) {
  const note = document.createElement("p");
  note.className = "note bad";
  const close = document.createElement("button");
  close.textContent = "✕";
  close.setAttribute("aria-label", "Close this message");
  close.onclick = () => note.remove();
  note.append(words, close);
  const there = [...$("errors").children];
  if (there.some((each) => each.firstChild.textContent === words)) return;
  there.slice(2).forEach((each) => each.remove());
  $("errors").prepend(note);
}

// ------------------------------------------------------------------------------------------ the page itself

/** Whatever depends on the robot. */
function furnish() {
  views = { real: new View($("real"), hello.cameras), dream: new View($("dream"), hello.cameras) };
  hands = new Hands(hello.controls, $("pad"), () => {
    if (!hands.idle) {
      if (!wire.busy && !coast && moments.now !== null) pace.press(moments.shown.step); // nothing was under way
      hand(false);
    }
    pump();
  }, hello.grippers.length ? toggleJaws : null);
  const { Comma, KeyM, KeyR, Period, Space } = keys;
  new Gamepad(hello.controls, (i, share) => hands.press(i, share), { 0: Space, 1: KeyM, 9: KeyR, 14: Comma, 15: Period }, say);
  $("seed").value = hello.seed;
  $("split").replaceChildren(...hello.splits.map((name) => new Option(name, name, false, name === hello.split)));
  $("looks").hidden = !hello.looks;
  for (const [id, names] of Object.entries(hello.choices)) {
    $(id).replaceChildren(...names.map((name) => new Option(name, name, false, name === hello.chosen[id])));
    $(id).parentElement.hidden = names.length < 2;
    $(id).onchange = change;
  }
  $("recorded").hidden = !hello.records.length;
  $("record").replaceChildren(new Option("open …", ""), ...hello.records.map((title, i) => new Option(title, i)));
  $("known").replaceChildren(...hello.known.map((words) => new Option(words)));
  $("who").replaceChildren(...hello.policies.map((name) => new Option(name)));
  $("who").hidden = hello.policies.length < 2;
  $("speed").value = Math.round(hello.speed * 100);
  $("fast").textContent = `${$("speed").value} %`;
  const rows = [
    ...hello.controls.map(({ keys: named, pad, label }) => [
      [...named.map(keyName), ...(pad ? [padName(pad)] : [])].join(", "), label]),
    ["Space, A", "close or open the jaws"], ["M, B", "hand over, and take over"], ["R, Start", "reset"],
    [", and . or the pad", "one step back, one step on"], ["B", "show believed places"], ["P", "MuJoCo in the model’s pixels"],
  ];
  $("keys").querySelector("dl").replaceChildren(...rows.flatMap(([key, words]) => {
    const [term, meaning] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = key;
    meaning.textContent = words;
    return [term, meaning];
  }));
  curves = new Curves(hello, moments, seek);
  $("keys").open = window.innerWidth > 1000;
  $("who").onchange();
}

/** Another task or checkpoint is another address. */
function change() {
  const query = new URLSearchParams(location.search);
  for (const id of Object.keys(hello.choices)) query.set(id, $(id).value);
  say("Building it …");
  location.assign(`${location.pathname}?${query}`);
}

$("episode").addEventListener("submit", (event) => {
  event.preventDefault();
  document.activeElement.blur(); // the keys are the robot's again
  reset();
});
$("scrub").addEventListener("input", () => seek(moments.path[$("scrub").valueAsNumber]));
$("back").onclick = () => seek(moments.path[moments.place - 1]);
$("on").onclick = () => seek(moments.path[moments.place + 1]);
$("hand").onclick = () => hand(!acting);
$("stop").onclick = () => {
  wire.stop();
  hand(false);
};
$("who").onchange = () => {
  $("hand").firstElementChild.textContent = `Let the ${$("who").value} act`;
  $("who").blur(); // the keys are the robot's again
};
$("speed").oninput = () => { $("fast").textContent = `${$("speed").value} %`; };
$("points").onchange = redraw;
$("pixels").onchange = redraw;
$("save").onclick = () => ask(() => ({ do: "save", at: moments.now, demonstration: $("demonstration").checked }));
$("record").onchange = () => {
  const record = $("record").value;
  $("record").blur(); // the keys are the robot's again
  if (record === "") return;
  hand(false);
  say("Opening …");
  ask({ do: "open", record: Number(record) }).then(() => {
    $("stop").hidden = true;
    $("record").value = ""; // so that the same one can be opened again
    say(YOURS);
  });
};
$("film").onclick = () => {
  hand(false);
  ask(() => ({ do: "film", at: moments.now })).then(() => {
    $("stop").hidden = true;
    say(YOURS);
  });
};
$("link").onclick = () => ask(() => ({ do: "link", at: moments.now }));
window.addEventListener("resize", redraw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("hashchange", () => { if (hello && location.hash.length > 1) begin(); });
document.addEventListener("pointerup", (event) => { // after a click the keys are the robot's again
  if (event.target.closest("button, input[type=range], input[type=checkbox], summary")) document.activeElement.blur();
});

const keys = {
  Space: toggleJaws,
  KeyM: () => hand(!acting),
  KeyR: reset,
  Comma: () => seek(moments.path[moments.place - 1]),
  Period: () => seek(moments.path[moments.place + 1]),
  KeyB: () => $("points").click(),
  KeyP: () => $("pixels").click(),
};
document.addEventListener("keydown", (event) => {
  if (!hello || elsewhere(event)) return;
  if (hands.key(event, true)) {
    event.preventDefault();
  } else if (keys[event.code]) {
    event.preventDefault();
    if (!event.repeat || event.code === "Comma" || event.code === "Period") keys[event.code]();
  }
});
document.addEventListener("keyup", (event) => hands?.key(event, false));
