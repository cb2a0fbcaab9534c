// The tree of moments that the server has told of, and the way through it that the time line shows.

const DECODED = 300; // pictures ready to be drawn; of others only their files are kept, a fiftieth of that

/** Keeps the memory of a long time line small. changed() is called when a picture has become ready. */
class Gallery {
  constructor(changed) {
    this.changed = changed;
    this.ready = new Set(); // what was asked for last stands last
  }

  /** An ImageBitmap to draw now; null while it is decoded. */
  image(picture) {
    if (!picture?.image) {
      if (picture) createImageBitmap(picture.file).then((image) => { picture.image = image; this.changed(); });
      return null;
    }
    this.ready.delete(picture);
    this.ready.add(picture);
    if (this.ready.size > DECODED) {
      const [oldest] = this.ready;
      this.ready.delete(oldest);
      oldest.image = null;
    }
    return picture.image;
  }
}

export class Moments {
  constructor(changed) {
    this.gallery = new Gallery(changed);
    this.clear();
  }

  clear() {
    this.gallery.ready.clear();
    // id -> the moment's head, with `pictures`: {real: {camera: picture}, dream: {…}}, and the ids of its `children`
    this.all = new Map();
    this.path = []; // ids from the start to the tip of the branch that is shown
    this.now = null; // id of the moment that is shown
  }

  /** A moment that the server told of; it is shown. */
  add(head, pictures) {
    const moment = { ...head, pictures: { real: {}, dream: {} }, children: [] };
    this.all.set(head.id, moment);
    this.put(moment, pictures);
    if (head.parent !== null) this.all.get(head.parent).children.push(head.id);
    const place = this.path.indexOf(head.parent);
    this.path = head.parent === null ? [head.id] : [...this.path.slice(0, place + 1), head.id];
    this.now = head.id;
    return moment;
  }

  /** Further pictures of a moment. */
  put(moment, pictures) {
    for (const picture of pictures) {
      moment.pictures[picture.world][picture.camera] = picture;
      this.gallery.image(picture);
    }
  }

  /** {camera: image} of some pictures, those that are ready. */
  images(pictures) {
    return Object.fromEntries(Object.entries(pictures).map(([camera, each]) => [camera, this.gallery.image(each)]));
  }

  get shown() {
    return this.all.get(this.now);
  }

  get place() {
    return this.path.indexOf(this.now);
  }

  /** Where every branch ends, oldest first. */
  get tips() {
    return [...this.all.values()].filter((moment) => !moment.children.length).map((moment) => moment.id);
  }

  way(id) {
    const found = [];
    for (let moment = this.all.get(id); moment; moment = this.all.get(moment.parent)) found.unshift(moment.id);
    return found;
  }

  /** Show the branch that ends there. */
  follow(tip) {
    this.path = this.way(tip);
    if (!this.path.includes(this.now)) this.now = tip;
  }

  /** The moment itself or the last one before it at which something holds. */
  before(moment, holds) {
    let found = moment;
    while (found && !holds(found)) found = this.all.get(found.parent);
    return found;
  }

  /** When the dream looked last: at this moment, or before. */
  looked(moment) {
    return this.before(moment, (each) => each.fresh);
  }

  /** Metres of uncertainty that the model step that led to this look added. */
  doubt(moment) {
    const earlier = moment.parent === null ? null : this.looked(this.all.get(moment.parent));
    const [now, then] = [moment, earlier].map((each) => each?.dream.uncertainty ?? 0);
    return Math.sqrt(Math.max(0, now * now - then * then));
  }

  /** [[step, value], …] of the looks on a path, where there is a value. */
  series(ids, value) {
    return ids.map((id) => this.all.get(id)).filter((each) => each.fresh)
      .map((each) => [each.step, value(each)]).filter(([, number]) => number !== undefined && number !== null);
  }
}
