// Runs before the first paint, so that the page never flashes in the theme that was not chosen.
try {
  const theme = localStorage.getItem("agent-kit:theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Storage is blocked: the system's theme it is.
}
