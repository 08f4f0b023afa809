// Light or dark before anything is drawn, so that the page does not flash. A classic script: modules come too late.
(() => {
  let wanted = null;
  try {
    wanted = localStorage.getItem("slidereason-theme");
  } catch {
    // storage may be refused; then the system's choice holds
  }
  if (wanted === "light" || wanted === "dark") document.documentElement.dataset.theme = wanted;

  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const root = document.documentElement;
      const dark = root.dataset.theme
        ? root.dataset.theme === "dark"
        : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      try {
        localStorage.setItem("slidereason-theme", root.dataset.theme);
      } catch {
        // it holds until the page is left
      }
    });
  });
})();
