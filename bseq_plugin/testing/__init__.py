"""Testing has conformance suites for plugin authors: subclass one, set one attribute, run pytest.

from bseq_plugin.testing.encoders import EncoderTests

class TestMine(EncoderTests):
    encoder = MyEncoder
"""
