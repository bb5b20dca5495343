"""Colours of the organs: told apart side by side, also by most colour-blind readers."""

# In the order of the labels (organ 1 first). Chosen by annealing: the largest smallest distance in OKLab over
# normal, deuteranopic and protanopic vision (Machado 2009), neighbours in the body weighted 1.6 times; aorta
# and vein were held to red and blue, lightness to 0.58 - 0.90 and the chroma of the large organs to at least 0.13,
# so that they stand out from grey tissue. The closest pair is 0.10 apart where neighbours are 1.6 times that.
ORGAN_COLOURS = (
    "#f08605",  # liver
    "#6fffae",  # right kidney
    "#c5a4ff",  # spleen
    "#8ff0fc",  # pancreas
    "#e14c33",  # aorta
    "#4492ff",  # inferior vena cava
    "#b944a7",  # right adrenal gland
    "#08b294",  # left adrenal gland
    "#588768",  # gallbladder
    "#dfea30",  # esophagus
    "#7b5ee1",  # stomach
    "#ff80bd",  # duodenum
    "#e9be4f",  # left kidney
)


def organ_colour(label: int) -> str:
    """Colour (#rrggbb) of a label from 1 up; a bundle with more organs starts over: 14 looks like 1."""
    return ORGAN_COLOURS[(label - 1) % len(ORGAN_COLOURS)]


def organ_colour_rgb(label: int) -> tuple[int, int, int]:
    """The same as (red, green, blue) in 0..255. Label 1 is (240, 134, 5)."""
    red, green, blue = bytes.fromhex(organ_colour(label)[1:])
    return (red, green, blue)
