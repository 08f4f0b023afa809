// One OpenSeadragon viewer on one slide. Outwards everything is level-0 pixels (px0); a view is its upper left corner
// and how many level-0 pixels a screen pixel shows.

/* global OpenSeadragon */

const TILE = 254;
const OVERLAP = 1;

/** A Deep Zoom source whose tiles lie where `url(level, x, y)` says. */
function source(slide, url) {
  return {
    width: slide.width_px0,
    height: slide.height_px0,
    tileSize: TILE,
    tileOverlap: OVERLAP,
    minLevel: 0,
    maxLevel: Math.ceil(Math.log2(Math.max(slide.width_px0, slide.height_px0, 1))),
    getTileUrl: url,
  };
}

/** A slide on screen. */
export class Stage {
  /**
   * @param {HTMLElement} element fills it
   * @param {object} slide its document
   */
  constructor(element, slide) {
    this.element = element;
    this.slide = slide;
    this.listeners = new Set();
    this.viewer = new OpenSeadragon.Viewer({
      element,
      drawer: "canvas",
      showNavigationControl: false,
      tileSources: [source(slide, (level, x, y) => `/v1/slides/${slide.slide_id}/dzi_files/${level}/${x}_${y}.jpeg`)],
      animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.6,
      springStiffness: 8,
      visibilityRatio: 0.3,
      maxZoomPixelRatio: 4,
      minZoomImageRatio: 0.6,
      imageLoaderLimit: 6,
      timeout: 60000,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true, flickEnabled: true },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsPen: { clickToZoom: false },
      zoomPerScroll: 1.3,
      crossOriginPolicy: false,
      silenceMultiImageWarnings: true,
      subPixelRoundingForTransparency: OpenSeadragon.SUBPIXEL_ROUNDING_OCCURRENCES.ONLY_AT_REST,
    });
    // the frame around it carries the label and the keys; OpenSeadragon's own canvas takes no part in that
    this.viewer.innerTracker.keyDownHandler = null;
    this.viewer.innerTracker.keyHandler = null;
    this.viewer.canvas.removeAttribute("tabindex");
    this.viewer.canvas.tabIndex = -1;
    this.ready = new Promise((resolve, reject) => {
      this.viewer.addOnceHandler("open", () => resolve(this));
      this.viewer.addOnceHandler("open-failed", (event) => reject(new Error(event.message)));
    });
    const moved = () => this.listeners.forEach((tell) => tell(this));
    this.viewer.addHandler("viewport-change", moved);
    this.viewer.addHandler("resize", () => requestAnimationFrame(moved));
    this.viewer.addHandler("open", moved);
  }

  /** µm per level-0 pixel; null when unknown. */
  get mpp() {
    return this.slide.mpp_x || null;
  }

  /** Width and height on screen, in CSS pixels. */
  get size() {
    return { width: this.element.clientWidth, height: this.element.clientHeight };
  }

  /** Where the view is now: {x, y, step}; step is level-0 pixels per screen pixel. */
  get view() {
    const bounds = this.viewer.viewport.getBounds(true);
    const width = this.slide.width_px0;
    return { x: bounds.x * width, y: bounds.y * width, step: (bounds.width * width) / this.size.width };
  }

  /** Call `tell(stage)` whenever the view changes. */
  onView(tell) {
    this.listeners.add(tell);
  }

  /** Level-0 pixels under a point of the element, in CSS pixels. */
  toSlide(x, y) {
    const view = this.view;
    return [view.x + x * view.step, view.y + y * view.step];
  }

  /** Show a view. */
  goTo([x, y, step], immediately = false) {
    const width = this.slide.width_px0;
    const { width: w, height: h } = this.size;
    const bounds = new OpenSeadragon.Rect(x / width, y / width, (w * step) / width, (h * step) / width);
    this.viewer.viewport.fitBounds(bounds, immediately);
  }

  /** The middle of the view and its step: what stays when the frame becomes narrower. */
  get middle() {
    const { x, y, step } = this.view;
    const { width, height } = this.size;
    return [x + (width * step) / 2, y + (height * step) / 2, step];
  }

  /** Show a view by its middle. */
  centre([x, y, step], immediately = false) {
    const { width, height } = this.size;
    this.goTo([x - (width * step) / 2, y - (height * step) / 2, step], immediately);
  }

  /** Show a box (x0, y0, x1, y1) with air around it, no larger than `least` level-0 pixels per screen pixel. */
  show([x0, y0, x1, y1], air = 0.6, least = 0.5) {
    const { width, height } = this.size;
    const step = Math.max(least, ((x1 - x0) * (1 + air)) / width, ((y1 - y0) * (1 + air)) / height);
    this.goTo([(x0 + x1 - width * step) / 2, (y0 + y1 - height * step) / 2, step]);
  }

  /** Move by a share of what is seen. */
  move(right, down) {
    const bounds = this.viewer.viewport.getBounds();
    this.viewer.viewport.panBy(new OpenSeadragon.Point(right * bounds.width, down * bounds.height));
    this.viewer.viewport.applyConstraints();
  }

  /** Zoom about the middle. */
  zoom(factor) {
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  /** The whole slide. */
  home() {
    this.viewer.viewport.goHome();
  }

  /** Whether a drag moves the slide. */
  set draggable(value) {
    this.viewer.setMouseNavEnabled(value);
  }

  /**
   * Lay a picture of tiles over the slide.
   * @param {(level: number, x: number, y: number) => string} url
   * @param {number} opacity
   * @returns {Promise<object>} OpenSeadragon's TiledImage
   */
  lay(url, opacity) {
    return new Promise((resolve, reject) => {
      this.viewer.addTiledImage({
        tileSource: source(this.slide, url),
        x: 0,
        y: 0,
        width: 1,
        opacity,
        preload: true,
        success: (event) => resolve(event.item),
        error: (event) => reject(new Error(event.message)),
      });
    });
  }

  /** Take a layer away. */
  remove(item) {
    if (this.viewer.world && this.viewer.world.getIndexOfItem(item) >= 0) this.viewer.world.removeItem(item);
  }

  /** Leave nothing behind. */
  close() {
    this.listeners.clear();
    this.viewer.destroy();
  }
}
