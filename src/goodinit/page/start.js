// Everything is defined: show it.
if (count) {
  document.body.classList.add("with-script");
  area.setAttribute("aria-valuemin", 1);
  area.setAttribute("aria-valuemax", count);
  area.setAttribute("aria-valuenow", 1);
  area.setAttribute("aria-valuetext", spoken(0));
  new ResizeObserver(() => panels.forEach(draw)).observe(area);
  showWhatIsPossible();
  openSome();
  items[0].tabIndex = 0;
  filter(); // a browser that goes back restores the fields
}
