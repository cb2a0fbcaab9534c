// Strips over control steps, drawn on a canvas: one or two lines of the path that is shown, other branches faint.

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A canvas ready to be drawn on in CSS pixels: [pen, width, height]. */
export function prepared(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [pen, width, height];
}

const LEFT = 30, RIGHT = 8, TOP = 6, BOTTOM = 5; // around what is drawn, for numbers

/**
 * lines: [{points: [[step, value], …], colour: css variable, dash, faint}]. top: the axis ends there at least, and
 * only there where fixed. now: step of the cursor. last: step of the right end. mark: value of a dashed line.
 */
export function strip(canvas, { lines, top, fixed = false, now, last, mark }) {
  const [pen, width, height] = prepared(canvas);
  if (!width) return;
  const values = lines.flatMap((line) => line.points.map((point) => point[1]));
  const high = fixed ? top : Math.max(top, nice(Math.max(0, ...values)));
  const x = (step) => LEFT + (width - LEFT - RIGHT) * (step / Math.max(last, 1));
  const y = (value) => height - BOTTOM - (height - TOP - BOTTOM) * (Math.min(value, high) / high);
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  pen.lineWidth = 1;
  for (const value of [0, high / 2, high]) {
    pen.strokeStyle = style("--grid");
    pen.beginPath();
    pen.moveTo(LEFT, y(value));
    pen.lineTo(width - RIGHT, y(value));
    pen.stroke();
    pen.fillStyle = style("--soft");
    if (height > 60 || value !== high / 2) pen.fillText(short(value), LEFT - 5, y(value) + (value ? 3 : -3));
  }
  if (mark !== undefined && mark < high) {
    pen.strokeStyle = style("--amber");
    pen.setLineDash([2, 3]);
    pen.beginPath();
    pen.moveTo(LEFT, y(mark));
    pen.lineTo(width - RIGHT, y(mark));
    pen.stroke();
    pen.setLineDash([]);
  }
  pen.lineJoin = "round";
  for (const line of lines) {
    pen.strokeStyle = style(line.colour);
    pen.fillStyle = pen.strokeStyle;
    pen.globalAlpha = line.faint ? 0.3 : 1;
    pen.lineWidth = line.faint ? 1 : 2;
    pen.setLineDash(line.dash ? [5, 4] : []);
    pen.beginPath();
    line.points.forEach(([step, value], i) => (i ? pen.lineTo(x(step), y(value)) : pen.moveTo(x(step), y(value))));
    pen.stroke();
    pen.setLineDash([]);
    if (line.points.length === 1) {
      pen.beginPath();
      pen.arc(x(line.points[0][0]), y(line.points[0][1]), 2.5, 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
  }
  pen.strokeStyle = style("--ink");
  pen.globalAlpha = 0.6;
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(x(now), 2);
  pen.lineTo(x(now), height - 2);
  pen.stroke();
  pen.globalAlpha = 1;
}

/** The step under a pointer. */
export function stepAt(canvas, event, last) {
  const box = canvas.getBoundingClientRect();
  const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
  return Math.round(Math.min(1, Math.max(0, share)) * last);
}

/** A legend: [[words, css class of its colour], …]. */
export function legend(place, entries) {
  place.replaceChildren(...entries.map(([words, kind]) => {
    const entry = document.createElement("span");
    entry.className = `entry ${kind}`;
    entry.textContent = words;
    return entry;
  }));
}

function nice(value) {
  const scale = 10 ** Math.floor(Math.log10(value || 1));
  return scale * [1, 2, 5, 10].find((step) => step * scale >= value);
}

function short(value) {
  if (value >= 10 || Number.isInteger(value)) return value.toFixed(0);
  return value.toFixed(value < 0.1 ? 2 : 1);
}
