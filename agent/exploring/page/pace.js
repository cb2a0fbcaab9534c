// How fast it is here: what a key takes to show in either world, and what the worlds take for a step. Medians.

const KEPT = 50; // the last of each

export class Pace {
  /** line: where it is said. */
  constructor(line) {
    this.line = line;
    this.times = { keyReal: [], keyDream: [], real: [], dream: [] }; // milliseconds
    this.pressed = null; // when a key went down, at which step, and which worlds have not shown it yet
  }

  /** A key went down while nothing was held. step: of the moment that is shown. */
  press(step) {
    this.pressed = { at: performance.now(), step, waiting: new Set(["keyReal", "keyDream"]) };
  }

  /** head: a moment as the server tells it, with the seconds that it `took`. */
  told(head) {
    for (const [world, seconds] of Object.entries(head.took ?? {})) this.add(world, 1000 * seconds);
  }

  /** A moment is on the screen. real, dream: whether the world's picture is of just that moment. */
  drawn(moment, real, dream) {
    if (!this.pressed || moment.by !== "human" || moment.step <= this.pressed.step) return;
    for (const [name, there] of [["keyReal", real], ["keyDream", dream]]) {
      if (there && this.pressed.waiting.delete(name)) this.add(name, performance.now() - this.pressed.at);
    }
    this.say();
  }

  add(name, time) {
    const times = this.times[name];
    times.push(time);
    if (times.length > KEPT) times.shift();
  }

  say() {
    const [keyReal, keyDream, real, dream] = ["keyReal", "keyDream", "real", "dream"].map((name) => {
      const sorted = [...this.times[name]].sort((a, b) => a - b);
      return sorted.length ? `${Math.round(sorted[sorted.length >> 1])} ms` : "–";
    });
    this.line.textContent = `A key shows in MuJoCo after ${keyReal}, in the dream after ${keyDream}. `
      + `MuJoCo takes ${real} a control step, drawn; the dream ${dream} a model step.`;
  }
}
