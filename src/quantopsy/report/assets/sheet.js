(() => {
  let known = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== known) { known = innerWidth; shared.drawScatters(); } });
  shared.drawScatters();
  document.body.dataset.ready = "true";
})();
