"use strict";
(() => {
  const { charts, scenes } = JSON.parse(document.getElementById("data").textContent);
  parts.curves(charts);
  if (scenes.length) parts.frames(scenes);
})();
