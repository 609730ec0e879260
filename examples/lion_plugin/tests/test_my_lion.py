"""Tests of the optimizer `my_lion`. The distribution must be installed."""

from my_lion import MyLion

import optplug
from optplug import testing


def test_my_lion_is_registered():
    assert optplug.get_optimizer("my_lion") is MyLion


@testing.parametrize("my_lion")
def test_my_lion_conforms(check):
    check()
