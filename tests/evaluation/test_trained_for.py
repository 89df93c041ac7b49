"""Restorers before the classifier that they were trained for, and before others."""

from __future__ import annotations

import shutil
from pathlib import Path

from gandefense import zoo
from gandefense.attacks.cache import fingerprint
from gandefense.evaluation.trained_for import trained_for
from gandefense.weights_io import load_weights, save_weights
from tests.evaluation.conftest import Networks


def test_another_classifier_than_a_restorer_was_trained_for_is_noticed(networks: Networks, tmp_path: Path) -> None:
    tensors, description = load_weights(Path(networks.classifier))
    there = {name: tmp_path / f"{name}.safetensors" for name in ("copied", "other", "told", "several", "bare")}
    save_weights(there["copied"], tensors, description | {"note": "the same weights in another file"})
    save_weights(there["other"], {name: 2 * tensor for name, tensor in tensors.items()}, description)
    tensors, description = load_weights(Path(networks.trn))
    told = description | {"classifier_fingerprint": fingerprint(zoo.load_classifier(networks.classifier))}
    save_weights(there["told"], tensors, told)
    save_weights(there["several"], tensors, told | {"config": {"others": [str(there["other"])]}})
    save_weights(there["bare"], tensors, {key: value for key, value in description.items() if key != "classifier"})
    names = {name: str(path) for name, path in there.items()}
    restorers = ["none", "jpeg", networks.trn, names["told"], names["several"], names["bare"]]

    def said(classifier: str) -> list[str | None]:
        found = trained_for(restorers, zoo.load_classifier(classifier), classifier)
        assert list(found) == restorers[2:5], "the others do not say, or were not trained"
        return list(found.values())

    assert said(networks.classifier) == [None, None, None]
    assert said(names["copied"]) == [networks.classifier, None, None], "without a fingerprint only the file tells"
    assert said(names["other"]) == [networks.classifier, networks.classifier, None], "one of several was that one"
    shutil.move(networks.classifier, tmp_path / "away")
    assert said(names["copied"])[1:] == [None, None], "weights are the same wherever they lie"
    shutil.copy(names["other"], networks.classifier)
    assert said(networks.classifier)[1] == networks.classifier, "weights that changed under the same name"
