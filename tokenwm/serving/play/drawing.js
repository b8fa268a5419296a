// Pictures, the ring at the action's target, bars and the timeline: all that is drawn, and nothing else.

export const $ = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// One figure for each future and one for the truth.
export class Stage {
  constructor(box) {
    this.box = box;
    this.figures = [];
    new ResizeObserver(() => this.layout()).observe(box);
  }

  async show(blobs, captions, kinds) {
    const images = await Promise.all(blobs.map((blob) => createImageBitmap(blob)));
    while (this.figures.length > images.length) this.figures.pop().remove();
    while (this.figures.length < images.length) {
      const figure = element("figure", { tabIndex: 0 }, element("canvas"), element("canvas"), element("figcaption"));
      this.figures.push(figure);
      this.box.append(figure);
    }
    images.forEach((image, number) => {
      const figure = this.figures[number];
      const [picture, , caption] = figure.children;
      if (picture.width !== image.width || picture.height !== image.height) {
        picture.width = image.width;
        picture.height = image.height;
      }
      picture.getContext("2d").drawImage(image, 0, 0);
      image.close();
      caption.textContent = captions[number];
      figure.className = kinds[number];
      figure.setAttribute("role", "img");
      figure.setAttribute("aria-label", captions[number]);
    });
    this.layout();
  }

  // As large as fits, side by side or below one another.
  layout() {
    const count = this.figures.length;
    if (!count) return;
    const gap = 16, wide = this.box.clientWidth - 8;
    const high = innerWidth > 760 ? this.box.clientHeight - 8 : Math.min(wide, innerHeight * 0.54);
    const picture = this.figures[0].children[0], ratio = picture.width / picture.height;
    let best = 0;
    for (let columns = 1; columns <= count; columns++) {
      const rows = Math.ceil(count / columns);
      const width = Math.min((wide - gap * (columns - 1)) / columns, ratio * (high - gap * (rows - 1)) / rows);
      best = Math.max(best, width);
    }
    const shape = `${Math.floor(best)} ${ratio}`;
    for (const figure of this.figures) {
      if (figure.dataset.shape === shape) continue;
      figure.dataset.shape = shape;
      figure.style.width = `${Math.floor(best)}px`;
      figure.style.height = `${Math.floor(best / ratio)}px`;
      const overlay = figure.children[1], scale = devicePixelRatio || 1;
      overlay.width = Math.floor(best * scale);
      overlay.height = Math.floor(best / ratio * scale);
    }
  }

  // A ring where the action points at; place: across and down, in [0, 1] of the first camera.
  ring(number, place, cameras) {
    const overlay = this.figures[number]?.children[1];
    if (!overlay) return;
    const pen = overlay.getContext("2d"), size = Math.max(7, overlay.height / 34);
    pen.clearRect(0, 0, overlay.width, overlay.height);
    if (!place) return;
    const x = place[0] * overlay.width / cameras, y = place[1] * overlay.height;
    for (const [width, colour] of [[size / 2.2, "#ffffffcc"], [size / 4.5, "#6a4fc9"]]) {
      pen.lineWidth = width;
      pen.strokeStyle = colour;
      pen.beginPath();
      pen.arc(x, y, size, 0, 7);
      for (const [across, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        pen.moveTo(x + across * size * 1.25, y + down * size * 1.25);
        pen.lineTo(x + across * size * 1.9, y + down * size * 1.9);
      }
      pen.stroke();
    }
  }
}

// 0 usual, 1 rare and beyond; null where nobody measured it.
export function level(value, scale) {
  if (value == null || scale.rare == null) return null;
  return Math.max(0, (value - scale.usual) / (scale.rare - scale.usual));
}

export function colour(height) {
  if (height == null) return css("--faint");
  return css(height >= 1 ? "--red" : height > 0.6 ? "--amber" : "--blue");
}

export function gauge(name, value, scale) {
  const bar = $(name), height = level(value, scale);
  const share = value == null ? 0 : Math.min(1, scale.rare == null ? value / 4 : value / scale.rare / 1.5);
  bar.style.setProperty("--fill", `${100 * share}%`);
  bar.style.setProperty("--level", colour(height));
  bar.setAttribute("aria-valuenow", Math.round(100 * share));
  $(`${name}-value`).textContent = value == null ? "–" : value.toFixed(value < 0.1 ? 3 : 2);
}

export function timeline(canvas, heights) {
  const scale = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * scale;
  canvas.height = canvas.clientHeight * scale;
  const pen = canvas.getContext("2d"), count = Math.max(heights.length, 60), width = canvas.width / count;
  heights.forEach((height, number) => {
    if (height === undefined) return;
    const share = height == null ? 0.3 : Math.min(1, 0.15 + 0.6 * height);
    pen.fillStyle = colour(height);
    pen.fillRect(number * width, canvas.height * (1 - share), Math.max(1, width - scale), canvas.height * share);
  });
}
