"use strict";

const report = JSON.parse(document.getElementById("report-data").textContent);

/** An element of HTML with attributes and children; a child may be text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Calls back when the width of an element has changed; its height may follow from what is drawn. */
function onWidth(watched, callback) {
  let width = watched.clientWidth;
  new ResizeObserver(() => {
    if (watched.clientWidth === width) return;
    width = watched.clientWidth;
    callback();
  }).observe(watched);
}

/** Uint8Array (z, y, x) of packed voxels: base64, zlib, differences along x. */
async function unpack(id, shape) {
  const text = atob(document.getElementById(id).textContent);
  const packed = Uint8Array.from(text, (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const voxels = new Uint8Array(await new Response(stream).arrayBuffer());
  const width = shape[2];
  for (let start = 0; start < voxels.length; start += width) {
    for (let x = start + 1; x < start + width; x++) voxels[x] += voxels[x - 1];
  }
  return voxels;
}

/** The HU of each of 256 grey levels, straight between the knots. */
function huOfLevels(knots) {
  return Float32Array.from({ length: 256 }, (_, level) => {
    const after = Math.max(1, knots.findIndex(([, known]) => known >= level));
    const [[lowHu, low], [highHu, high]] = [knots[after - 1], knots[after]];
    return lowHu + ((level - low) * (highHu - lowHu)) / (high - low);
  });
}

/** How a plane across an axis lies in the voxels: columns and rows of the picture, rows from the head down. */
function planeLayout(axis, shape, spacing) {
  const [depth, height, width] = shape;
  const strides = [height * width, width, 1];
  const [down, across] = [[1, 2], [0, 2], [0, 1]][axis];
  const upright = axis !== 0; // z runs to the head, the picture's rows to the feet
  return {
    axis, down, across, upright,
    rows: shape[down], columns: shape[across],
    widthMm: shape[across] * spacing[across], heightMm: shape[down] * spacing[down],
    /** Index of the voxel in a row and column of the picture. */
    index(position, row, column) {
      const along = upright ? shape[down] - 1 - row : row;
      return position * strides[axis] + along * strides[down] + column * strides[across];
    },
  };
}
