"""Measure how fast the demo photographs are drawn on one core, JPEG and lesion mask included."""

import time

import cv2
from common import make_parser

from drgrade.synthetic.drawing import draw_photograph, plan_photographs


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=int, default=100, help="number of photographs")
    parser.add_argument("--size", type=int, default=256, help="their height in pixels")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    photographs = plan_photographs(arguments.count, seed=0)
    draw_photograph(photographs[0], arguments.size, seed=0)
    start = time.process_time()
    written = 0
    for photograph in photographs:
        drawing = draw_photograph(photograph, arguments.size, seed=0)
        bgr = cv2.cvtColor(drawing.pixels, cv2.COLOR_RGB2BGR)
        written += len(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, drawing.jpeg_quality])[1])
        written += len(cv2.imencode(".png", drawing.lesions)[1])
    seconds = time.process_time() - start
    print(
        f"{arguments.count / seconds:.1f} photographs/s on one core at {arguments.size} px, "
        f"{written / arguments.count / 1000:.1f} kB each"
    )


if __name__ == "__main__":
    main()
