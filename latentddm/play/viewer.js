// Runs once with `element`, the component that holds a sheet: a click on a picture shows it alone.
element.addEventListener("click", (event) => {
  const dialog = element.querySelector("dialog.alone");
  if (event.target.closest("dialog")) {
    dialog.close();
    return;
  }
  const picture = event.target.closest("figure button")?.querySelector("img");
  if (!picture) return;
  const [large, caption] = [dialog.querySelector("img"), dialog.querySelector("p")];
  large.src = picture.src;
  large.alt = picture.alt;
  caption.textContent = picture.alt;
  dialog.showModal(); // Escape closes it
});
