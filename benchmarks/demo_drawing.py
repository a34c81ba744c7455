"""How fast the demo photographs are drawn: images per second on one core, JPEG and lesion mask included."""

import argparse
import time

import cv2

from drgrade.synthetic.cohort import plan_photographs
from drgrade.synthetic.drawing import draw_photograph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="photographs to draw")
    parser.add_argument("--size", type=int, default=256, help="their height in px")
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
    print(f"{arguments.count / seconds:.1f} images/s/core at {arguments.size} px", end=", ")
    print(f"{written / arguments.count / 1000:.1f} kB per image")


if __name__ == "__main__":
    main()
