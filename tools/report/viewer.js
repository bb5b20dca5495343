const DIFFERENCE = { missed: [68, 146, 255], added: [240, 134, 5], other: [214, 84, 196], same: [190, 198, 208] };
const DIFFERENCE_PIXELS = Object.fromEntries(
  Object.entries(DIFFERENCE).map(([kind, colour]) => [kind, pixel(...colour, kind === "same" ? 70 : 255)]),
);
const PLANES = ["Axial", "Coronal", "Sagittal"];
const huOf = huOfLevels(report.greyKnots);
const organColours = new Map(report.organs.map(({ label, colour }) => [label, hexToRgb(colour)]));

function hexToRgb(text) {
  return [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
}

/** The slice viewer: three planes of one case. */
class Viewer {
  constructor(root) {
    this.root = root;
    this.hidden = new Set();
    this.figures = [...root.querySelectorAll(".plane")].map((figure) => this.preparePlane(figure));
    for (const id of ["overlay", "opacity", "window"]) {
      document.getElementById(id).addEventListener("input", () => this.draw());
    }
    for (const swatch of root.querySelectorAll("[data-colour]")) {
      swatch.style.background = `rgb(${DIFFERENCE[swatch.dataset.colour]})`;
    }
    onWidth(root, () => this.draw());
  }

  /** Shows a case, or says why there is nothing to show. */
  async show(entry) {
    const empty = document.getElementById("no-view");
    const reason = entry.noView ?? ("DecompressionStream" in window ? null : "this browser is too old to unpack them");
    this.view = null;
    this.wanted = entry;
    this.root.hidden = Boolean(reason);
    empty.hidden = !reason;
    empty.textContent = reason ? `No slices: ${reason}` : "";
    if (reason) return;
    const { shape, voxels } = entry.view;
    const names = Object.keys(voxels);
    const unpacked = await Promise.all(names.map((name) => unpack(voxels[name], shape)));
    if (this.wanted !== entry) return; // another case was chosen meanwhile
    this.view = entry.view;
    this.voxels = Object.fromEntries(names.map((name, index) => [name, unpacked[index]]));
    this.at = [...entry.view.planes];
    this.layouts = [0, 1, 2].map((axis) => planeLayout(axis, shape, entry.view.spacing));
    document.getElementById("page-spacing").textContent = entry.view.spacing.map((mm) => mm.toFixed(1)).join(" × ");
    this.figures.forEach(({ slider, figure }, axis) => {
      slider.max = shape[axis] - 1;
      figure.style.flexGrow = this.layouts[axis].widthMm;
    });
    this.chooseOverlay();
    this.listOrgans(entry);
    this.draw();
    this.root.dataset.case = entry.id;
  }

  preparePlane(figure) {
    const axis = Number(figure.dataset.axis);
    const [canvas, slider] = [figure.querySelector("canvas"), figure.querySelector("input")];
    slider.addEventListener("input", () => this.move(axis, Number(slider.value)));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return; // else nobody could scroll past the pictures
      event.preventDefault();
      this.move(axis, this.at[axis] - Math.sign(event.deltaY));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.move(axis, this.at[axis] + step);
    });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pick(axis, event);
    });
    canvas.addEventListener("pointermove", (event) => (event.buttons ? this.pick(axis, event) : this.tell(axis, event)));
    return { figure, canvas, slider, position: figure.querySelector(".position") };
  }

  move(axis, position) {
    if (!this.view) return;
    this.at[axis] = Math.min(this.view.shape[axis] - 1, Math.max(0, position));
    this.draw();
  }

  /** (z, y, x) under the pointer. */
  under(axis, event) {
    const { down, across, rows, columns, upright } = this.layouts[axis];
    const box = this.figures[axis].canvas.getBoundingClientRect();
    const place = (share, length) => Math.min(length - 1, Math.max(0, Math.floor(share * length)));
    const row = place((event.clientY - box.top) / box.height, rows);
    const found = [...this.at];
    found[down] = upright ? rows - 1 - row : row;
    found[across] = place((event.clientX - box.left) / box.width, columns);
    return found;
  }

  pick(axis, event) {
    if (!this.view) return;
    this.at = this.under(axis, event);
    this.draw();
    this.tell(axis, event);
  }

  /** What lies under the pointer, in words. */
  tell(axis, event) {
    if (!this.view) return;
    const [z, y, x] = this.under(axis, event);
    const index = (z * this.view.shape[1] + y) * this.view.shape[2] + x;
    const name = (label) => report.organs.find((organ) => organ.label === label)?.name ?? "no organ";
    const organs = this.view.roles.map((role) => `${role}: ${name(this.voxels[role][index])}`);
    const hu = Math.round(huOf[this.voxels.scan[index]]);
    document.getElementById("voxel").textContent = [`about ${hu} HU`, ...organs].join("  ·  ");
  }

  /** Of what the case does not have nothing can be chosen. */
  chooseOverlay() {
    const has = { scan: true, difference: this.view.roles.length === 2 };
    for (const role of this.view.roles) has[role] = true;
    for (const input of document.querySelectorAll("#overlay input")) {
      input.disabled = !has[input.value];
      if (input.checked && input.disabled) document.querySelector(`#overlay [value="${this.view.roles[0]}"]`).checked = true;
    }
  }

  draw() {
    if (!this.view) return;
    const overlay = document.querySelector("#overlay :checked").value;
    const opacity = document.getElementById("opacity").value / 100;
    document.getElementById("difference-key").hidden = overlay !== "difference";
    document.getElementById("organs").classList.toggle("uncoloured", overlay === "difference");
    const [level, width] = document.getElementById("window").value.split(",").map(Number);
    const grey = Uint8ClampedArray.from(huOf, (hu) => ((hu - level + width / 2) * 255) / width);
    this.figures.forEach(({ canvas, slider, position }, axis) => {
      const [at, count] = [this.at[axis], this.view.shape[axis]];
      slider.value = at;
      position.textContent = `${at + 1} / ${count}`;
      canvas.setAttribute("aria-label", `${PLANES[axis]} plane, slice ${at + 1} of ${count}, ${overlay}`);
      slider.setAttribute("aria-valuetext", `${at + 1} of ${count}`);
      this.drawPlane(canvas, this.layouts[axis], grey, overlay, opacity);
    });
  }

  drawPlane(canvas, layout, grey, overlay, opacity) {
    const width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    const height = Math.max(1, Math.round((width * layout.heightMm) / layout.widthMm));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.globalAlpha = 1;
    context.drawImage(this.scanImage(layout, grey), 0, 0, width, height);
    if (overlay !== "scan") {
      context.globalAlpha = opacity;
      context.drawImage(this.overlayImage(layout, overlay), 0, 0, width, height);
    }
    this.drawCross(context, layout, width, height);
  }

  scanImage(layout, grey) {
    const at = this.at[layout.axis];
    const { scan } = this.voxels;
    return paint(layout, (row, column) => {
      const value = grey[scan[layout.index(at, row, column)]];
      return pixel(value, value, value);
    });
  }

  /** Organs filled and outlined; or, where both label maps are compared, what differs. */
  overlayImage(layout, overlay) {
    const at = this.at[layout.axis];
    const shown = (role) => (row, column) => {
      const label = this.voxels[role][layout.index(at, row, column)];
      return this.hidden.has(label) ? 0 : label;
    };
    if (overlay === "difference") {
      const [predicted, expected] = [shown("prediction"), shown("reference")];
      return paint(layout, (row, column) => DIFFERENCE_PIXELS[difference(predicted(row, column), expected(row, column))]);
    }
    const label = shown(overlay);
    const { rows, columns } = layout;
    return paint(layout, (row, column) => {
      const own = label(row, column);
      if (!own) return 0;
      const inside = row > 0 && column > 0 && row < rows - 1 && column < columns - 1
        && own === label(row - 1, column) && own === label(row + 1, column)
        && own === label(row, column - 1) && own === label(row, column + 1);
      return pixel(...organColours.get(own), inside ? 165 : 255);
    });
  }

  /** Where the two other planes cut this one; open around the point itself. */
  drawCross(context, { down, across, upright, rows, columns }, width, height) {
    const x = ((this.at[across] + 0.5) / columns) * width;
    const y = (((upright ? rows - 1 - this.at[down] : this.at[down]) + 0.5) / rows) * height;
    const gap = 10 * devicePixelRatio;
    context.globalAlpha = 0.3;
    context.strokeStyle = "#ffffff";
    context.lineWidth = devicePixelRatio;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }

  /** Organs with their volumes; a click hides one. */
  listOrgans(entry) {
    const list = document.getElementById("organs");
    list.replaceChildren(...report.organs.map(({ label, name, colour }) => {
      const box = element("input", { type: "checkbox" });
      box.checked = !this.hidden.has(label);
      box.addEventListener("change", () => {
        this.hidden[box.checked ? "delete" : "add"](label);
        this.draw();
      });
      const amounts = entry.view.roles.map((role) => {
        const ml = entry.view.volumesMl[role][name];
        return ml.toFixed(ml && ml < 10 ? 1 : 0);
      });
      const swatch = element("span", { class: "swatch", style: `background: ${colour}` });
      const row = element("label", {}, box, swatch, name, element("span", { class: "amount" }, `${amounts.join(" / ")} ml`));
      const absent = entry.view.roles.every((role) => !entry.view.volumesMl[role][name]);
      return element("li", absent ? { class: "absent" } : {}, row);
    }));
  }
}

/** Four bytes of a picture as one number. */
function pixel(red, green, blue, alpha = 255) {
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

/** missed, added, other, same, or none where neither has an organ. */
function difference(predicted, expected) {
  if (predicted === expected) return predicted ? "same" : "none";
  if (!predicted) return "missed";
  return expected ? "other" : "added";
}

/** A canvas of one pixel a voxel; undefined leaves it clear. */
function paint({ rows, columns }, colour) {
  const canvas = new OffscreenCanvas(columns, rows);
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let row = 0, place = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) pixels[place++] = colour(row, column) ?? 0;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
