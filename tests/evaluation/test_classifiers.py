import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sjepa.evaluation.classifiers import LayerMix, logistic_regression, multilayer_perceptron


def clusters(count):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=generator)
    label = torch.randint(4, (count,), generator=generator)
    return 5 + 3 * (centres[label] + torch.randn(count, 6, generator=generator)), label


def test_logistic_regression_reaches_scikit_learns_optimum():
    features, label = clusters(600)
    ours = logistic_regression(features[:400, None], label[:400], num_classes=4)(features[400:, None])
    scale = StandardScaler().fit(features[:400].numpy())
    model = LogisticRegression(C=1.0, max_iter=2000).fit(scale.transform(features[:400].numpy()), label[:400].numpy())
    theirs = model.predict(scale.transform(features[400:].numpy()))
    assert np.mean(ours.numpy() == theirs) >= 0.99  # ties of two classes may fall either way
    assert (ours == label[400:]).float().mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["linear", "mlp"])
def test_learned_weights_find_the_layer_that_knows(probe):
    """Two layers of noise and one of clusters: far better than the noise alone, which is no better
    than chance (1/4)."""
    features, label = clusters(900)
    noise = torch.randn(900, 2, 6, generator=torch.Generator().manual_seed(1))
    layers = torch.cat([noise[:, :1], features[:, None], noise[:, 1:]], dim=1)

    def accuracy(x_NLD):
        if probe == "linear":
            classify = logistic_regression(x_NLD[:600], label[:600], num_classes=4)
        else:
            classify = multilayer_perceptron(x_NLD[:600], label[:600], num_classes=4, seed=0)
        return float((classify(x_NLD[600:]) == label[600:]).float().mean())

    assert accuracy(noise) < 0.4
    assert accuracy(layers) > 0.6
    assert accuracy(layers) > accuracy(features[:, None]) - 0.1


def test_a_mix_starts_as_the_mean_of_standardised_layers():
    x_NLD = 3 + 2 * torch.randn(50, 3, 4)
    mix = LayerMix([x_NLD[:20], x_NLD[20:]])
    expected = np.mean([StandardScaler().fit_transform(x_NLD[:, layer].numpy()) for layer in range(3)], axis=0)
    assert np.abs(mix(x_NLD).detach().numpy() - expected).max() < 1e-5
    constant = torch.ones(5, 1, 4)
    assert LayerMix([constant])(constant + 1).max() == 1  # not scaled by what is next to nothing
    assert torch.isfinite(LayerMix([constant])(constant)).all()


@pytest.mark.slow
def test_an_mlp_learns_what_a_line_cannot_and_the_same_each_time():
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    label = (x[:, 0] * x[:, 1] > 0).long()
    x = x[:, None]

    def right(classify):
        return float((classify(x[1500:]) == label[1500:]).float().mean())

    assert right(logistic_regression(x[:1500], label[:1500], num_classes=2)) < 0.65
    classify = multilayer_perceptron(x[:1500], label[:1500], num_classes=2, seed=3)
    assert right(classify) > 0.9
    again = multilayer_perceptron(x[:1500], label[:1500], num_classes=2, seed=3)
    assert torch.equal(classify(x), again(x))
    assert torch.equal(classify(x[1500:]), classify(x)[1500:])  # without dropout, whatever else is in the batch
