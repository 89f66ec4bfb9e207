// What scrolls sideways can be reached and scrolled with the keyboard.
addEventListener("load", function () {
  function reach() {
    document.querySelectorAll("article pre, article table, article .cell_output, article .output, article .math").forEach(
      function (part) {
        if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
      }
    );
  }
  reach();
  addEventListener("resize", reach);
});
