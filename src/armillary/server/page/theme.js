// Runs before the first paint, so that a chosen theme does not flash. A classic script, for that reason alone.
(() => {
  try {
    const chosen = localStorage.getItem("armillary.theme");
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  } catch {
    // No storage: the system's preference rules.
  }
})();
