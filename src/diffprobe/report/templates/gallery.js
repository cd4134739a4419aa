(() => {
  /** The picture's pixels at the given size. */
  function pixels(image, width, height) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  }

  /** Absolute difference of each channel, times the gain, on black. */
  function difference(canvas, before, after, gain) {
    const [width, height] = [before.naturalWidth, before.naturalHeight];
    const [a, b] = [pixels(before, width, height), pixels(after, width, height)];
    const image = new ImageData(width, height);
    image.data.forEach((_, i) => (image.data[i] = i % 4 === 3 ? 255 : Math.abs(a[i] - b[i]) * gain));
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function compare(box, before, after) {
    for (const [source, role] of [[after, "under"], [before, "over"]]) {
      const copy = source.cloneNode();
      copy.className = role;
      copy.alt = "";
      box.prepend(copy);
    }
    box.append(box.querySelector(".handle"), box.querySelector("input"));
    const input = box.querySelector("input");
    const show = () => {
      box.style.setProperty("--at", `${input.value}%`);
      input.setAttribute("aria-valuetext", `${input.value} % ${box.dataset.over}`);
    };
    input.addEventListener("input", show);
    show();
  }

  async function open(gallery) {
    const gain = gallery.querySelector(".gain");
    const drawings = [];
    for (const exhibit of gallery.querySelectorAll(".exhibit")) {
      const canvas = exhibit.querySelector("canvas");
      if (!canvas) continue;
      const [before, after] = [...exhibit.querySelectorAll("img")].slice(-2);
      compare(exhibit.querySelector(".compare"), before, after);
      await Promise.all([before.decode(), after.decode()]);
      const draw = () => difference(canvas, before, after, Number(gain.value));
      drawings.push(draw);
      draw();
    }
    gain?.addEventListener("input", () => {
      gallery.querySelector(".times").textContent = `×${gain.value}`;
      drawings.forEach((draw) => draw());
    });
  }

  document.querySelectorAll(".gallery").forEach(open);
})();
