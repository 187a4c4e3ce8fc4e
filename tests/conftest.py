"""For all tests: property tests take no notice of the clock, and few examples, so that the suite stays quick."""

from hypothesis import settings

settings.register_profile("fxtrace", deadline=None, max_examples=40)
settings.load_profile("fxtrace")
