"""A data set as a loose file: bright stripes are the finding."""

import numpy as np
import pandas as pd
from PIL import Image

from cxrbench.data.base import CxrDataset
from cxrbench.data.index import Index


class Striped(CxrDataset):
    """Noise with and without stripes, two films a patient."""

    name = "striped"
    splits = ("holdout", "cv5")
    home = "nowhere"

    @classmethod
    def read_index(cls, root, params):
        root = cls.require_root(root)
        names = sorted(path.name for path in root.glob("*.png"))
        frame = pd.DataFrame({"image_id": names, "path": names})
        frame["patient_id"] = frame["image_id"].str.partition("-")[0]
        frame["stripes"] = frame["image_id"].str.contains("stripes").astype(float)
        return Index(cls.name, frame, ("stripes",), root)

    @classmethod
    def fake(cls, root, *, images=60, size=64, seed=0):
        random = np.random.default_rng(seed)
        for i in range(images):
            film = random.integers(60, 120, (size, size))
            kind = "stripes" if i % 3 == 0 else "plain"
            if kind == "stripes":
                film[::8] += 90
            Image.fromarray(film.astype(np.uint8)).save(root / f"p{i // 2:03d}-{i}-{kind}.png")
        return root
