// The pictures of both worlds, and the futures that the planner considers.

import { prepared } from "./charts.js";

const colours = { are: "--truth", seen: "--real", dream: "--dream" };

export class View {
  /** One world's figure. cameras: names, the first is drawn large. */
  constructor(figure, cameras) {
    this.figure = figure;
    this.cameras = cameras;
    this.first = figure.querySelector(".first");
    this.words = figure.querySelector(".what");
    const others = figure.querySelector(".others");
    this.others = cameras.slice(1).map((name) => {
      const canvas = document.createElement("canvas");
      canvas.title = name;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `the camera ${name}`);
      others.append(canvas);
      return canvas;
    });
  }

  /** images: {camera: image}. points: {kind: [[x, y], …]}. coarse: pixels a side to show no more of than. */
  draw(images, points, words, unsure, coarse) {
    const pen = this.paint(this.first, images[this.cameras[0]], coarse);
    if (pen) for (const [kind, places] of Object.entries(points)) mark(...pen, places, kind);
    this.others.forEach((canvas, i) => this.paint(canvas, images[this.cameras[i + 1]]));
    this.words.textContent = words;
    this.figure.classList.toggle("unsure", unsure);
  }

  paint(canvas, image, coarse) {
    if (!image) return null; // what was there stays until it is ready
    const [pen, width, height] = prepared(canvas);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(coarse ? shrunk(image, coarse) : image, 0, 0, width, height);
    return [pen, width, height];
  }
}

function shrunk(image, side) {
  const small = new OffscreenCanvas(side, side);
  const pen = small.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, side, side);
  return small;
}

/** Rings where things are, dots where they are believed to be; both are edged, to be seen on any ground. */
function mark(pen, width, height, places, kind) {
  const colour = getComputedStyle(document.documentElement).getPropertyValue(colours[kind]).trim();
  const size = Math.max(3, width / 70);
  for (const [x, y] of places) {
    pen.beginPath();
    pen.arc(x * width, y * height, kind === "are" ? 1.9 * size : size, 0, 7);
    pen.lineWidth = kind === "are" ? 4 : 2;
    pen.strokeStyle = "rgb(0 0 0 / 0.75)";
    pen.stroke();
    if (kind === "are") {
      pen.lineWidth = 2;
      pen.strokeStyle = colour;
      pen.stroke();
    } else {
      pen.fillStyle = colour;
      pen.fill();
      pen.lineWidth = 1;
      pen.strokeStyle = "#fff";
      pen.stroke();
    }
  }
}

const BEAT_MS = 200; // half as fast as the robot, where a film has a picture every two control steps
const REST_BEATS = 2;
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

export class Futures {
  /** list: where the films go. words: where what they are is said. */
  constructor(list, words) {
    this.list = list;
    this.words = words;
    this.films = [];
    this.beat = 0;
    setInterval(() => this.turn(), BEAT_MS);
  }

  /** A decision: its best candidates, the films of what they lead to, and the picture from which they begin. seconds:
      that they last. choose(i) is called for the one that is clicked on. */
  show(head, pictures, from, seconds, choose) {
    this.films = head.candidates.map((candidate, i) => {
      const frames = pictures.filter((picture) => picture.candidate === i).map((picture) => picture.image);
      const canvas = document.createElement("canvas");
      const item = document.createElement("li");
      const button = document.createElement("button");
      const words = document.createElement("span");
      words.textContent = candidate.score.toFixed(3);
      const notes = [candidate.chosen && "chosen", candidate.own && "without search"].filter(Boolean);
      if (notes.length) words.append(document.createElement("br"), notes.join(", "));
      button.classList.toggle("chosen", candidate.chosen);
      button.title = "Play it in both worlds";
      button.onclick = () => choose(i);
      button.append(canvas, words);
      item.append(button);
      return { item, canvas, frames: frames.length ? [from, ...frames].filter(Boolean) : [] };
    });
    this.list.replaceChildren(...this.films.map((film) => film.item));
    this.words.textContent = `The best ${head.candidates.length} of ${head.of} futures: how each goes on for `
      + `${seconds.toFixed(1)} s, and its score. Choose one to play it in both worlds.`;
    this.beat = 0;
    this.turn();
  }

  clear() {
    this.films = [];
    this.list.replaceChildren();
  }

  turn() {
    if (!this.list.closest("details").open) return;
    this.beat += 1;
    for (const { canvas, frames } of this.films) {
      if (!frames.length) continue;
      const [pen, width, height] = prepared(canvas);
      pen.imageSmoothingQuality = "high";
      const frame = Math.max(0, this.beat % (frames.length + 2 * REST_BEATS) - REST_BEATS); // the ends stand longer
      pen.drawImage(frames[calm.matches ? frames.length - 1 : Math.min(frame, frames.length - 1)], 0, 0, width, height);
    }
  }
}
