"""Figures by matplotlib, in colours that the colour-blind tell apart (Okabe and Ito, 2008)."""

from pathlib import Path
from typing import TYPE_CHECKING

from lib.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, VERMILION, GREEN, SKY, PURPLE = '#0072b2', '#e69f00', '#d55e00', '#009e73', '#56b4e9', '#cc79a7'
INK, GRID = '#222222', '#dddddd'


def new_figure(width: float, height: float) -> 'Figure':
    """An empty figure on white, its size in inches. It belongs to no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained', facecolor='white')


def save_figure(figure: 'Figure', path: Path) -> None:
    """Writes a PNG, at 120 dots per inch, in the place of what was there. Raises UserError."""
    with replacing(path) as file:
        figure.savefig(file, format='png', dpi=120)
