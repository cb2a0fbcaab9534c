// The lines below the worlds: how far these are apart, and what the model thinks of both.

import { legend, strip, stepAt } from "./charts.js";

const SERIES = [
  { name: "value", words: "value", of: (thought) => thought.value },
  { name: "success", words: "chance of success", of: (thought) => thought.success },
  { name: "held", words: "holds something", of: (thought) => thought.held },
];
const LEAST = 5; // looks that an axis is long at least

export class Curves {
  /** seek(id) is called for the moment of the path that is clicked on. */
  constructor(hello, moments, seek) {
    this.hello = hello;
    this.moments = moments;
    this.drift = document.getElementById("drift");
    this.thoughts = new Map([...SERIES.map(({ name, words }) => [name, words]), ["doubt", "uncertainty of a step, cm"]]
      .map(([name, words]) => [name, titled(words)]));
    const legends = ["legend-drift", "legend-thought"].map((id) => document.getElementById(id));
    legend(legends[0], [["gripper", "gripper"], ["objects", "objects dashed"]]);
    legend(legends[1], [["of its dream", "dream"], ["of MuJoCo’s picture", "real dashed"]]);
    for (const canvas of [this.drift, ...this.thoughts.values()]) {
      canvas.addEventListener("click", (event) => {
        const place = stepAt(canvas, event, this.last);
        seek(moments.path[Math.min(place, moments.path.length - 1)]);
      });
    }
  }

  /** The step at which the axes end: that of the longest branch. */
  get last() {
    const { all, tips } = this.moments;
    return Math.max(this.hello.look * LEAST, ...tips.map((id) => all.get(id).step));
  }

  draw() {
    const { moments, last } = this;
    const { path } = moments;
    const now = moments.shown.step;
    const ways = moments.tips.filter((tip) => tip !== path.at(-1)).map((tip) => moments.way(tip));
    const lines = [["objects", "--objects", true], ["gripper", "--gripper", false]].flatMap(([name, colour, dash]) => [
      ...ways.map((way) => ({ points: moments.series(way, (each) => each.drift[name]), colour, dash, faint: true })),
      { points: moments.series(path, (each) => each.drift[name]), colour, dash },
    ]).filter((line) => line.points.length);
    strip(this.drift, { lines, top: 1, now, last });
    for (const { name, of } of SERIES) {
      strip(this.thoughts.get(name), {
        lines: [
          { points: moments.series(path, (each) => each.seen && of(each.seen)), colour: "--real", dash: true },
          { points: moments.series(path, (each) => of(each.dream)), colour: "--dream" },
        ],
        top: 1, fixed: true, now, last,
      });
    }
    const unsure = 100 * this.hello.unsure;
    strip(this.thoughts.get("doubt"), {
      lines: [{ points: moments.series(path, (each) => each.step && 100 * moments.doubt(each)), colour: "--dream" }],
      top: 2 * unsure, now, last, mark: unsure,
    });
  }
}

/** A canvas under its title, in its place on the page. */
function titled(words) {
  const [place, title, canvas] = ["div", "h3", "canvas"].map((tag) => document.createElement(tag));
  title.textContent = words;
  canvas.className = "strip";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${words} over time`);
  place.append(title, canvas);
  document.getElementById("thoughts").append(place);
  return canvas;
}
