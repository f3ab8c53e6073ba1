/* What scrolls sideways can be reached by the keyboard. */
addEventListener("load", () => {
  for (const part of document.querySelectorAll(".bd-article table, .bd-article pre")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  }
});
