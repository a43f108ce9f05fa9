// Everything is defined: show it.
function drawForPaper(isPaper) {
  area.classList.toggle("on-paper", isPaper);
  panels.forEach(draw);
}

if (count) {
  document.body.classList.add("with-script");
  area.setAttribute("aria-valuemin", 1);
  area.setAttribute("aria-valuemax", count);
  area.setAttribute("aria-valuenow", 1);
  area.setAttribute("aria-valuetext", spoken(0));
  new ResizeObserver(() => panels.forEach(draw)).observe(area);
  // Drawn as wide as paper, not drawn wide and shrunk until nobody can read it.
  addEventListener("beforeprint", () => drawForPaper(true));
  addEventListener("afterprint", () => drawForPaper(false));
  showWhatIsPossible();
  openSome();
  items[0].tabIndex = 0;
  filter(); // a browser that goes back restores the fields
}
