"""Tests of the fits on times that are known."""

import pathlib
import sys
import unittest

import numpy

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import curves  # noqa: E402
import gemm  # noqa: E402
import nccl  # noqa: E402
import textproto  # noqa: E402


class FitTest(unittest.TestCase):
    def setUp(self):
        self.x = numpy.tile([1.0, 2, 4, 8, 16], 20)
        self.roofline = numpy.repeat(numpy.linspace(20, 2000, 20), 5)
        self.known = curves.Curve(5.0, numpy.array([1.0, 4, 16]), numpy.array([0.9, 0.8, 0.5]))
        self.time = self.known.time_us(self.x, self.roofline)

    def test_finds_the_curve_that_made_the_times(self):
        found = curves.fit(self.x, self.roofline, self.time, [1, 4, 16])
        self.assertAlmostEqual(found.overhead_us, 5.0, places=2)
        numpy.testing.assert_allclose(found.efficiency, [0.9, 0.8, 0.5], rtol=1e-3)

    def test_one_time_in_twenty_that_is_tenfold_moves_it_little(self):
        self.time[::20] *= 10
        found = curves.fit(self.x, self.roofline, self.time, [1, 4, 16], overhead_us=5.0)
        numpy.testing.assert_allclose(found.efficiency, [0.9, 0.8, 0.5], rtol=0.02)

    def test_leaves_out_knots_that_no_measurement_touches(self):
        found = curves.fit(self.x, self.roofline, self.time, [1, 4, 16, 256, 1024])
        self.assertEqual(list(found.x), [1, 4, 16])

    def test_is_constant_beyond_its_ends_and_linear_in_log2_between(self):
        self.assertAlmostEqual(float(self.known.at(0.5)), 0.9)
        self.assertAlmostEqual(float(self.known.at(2)), 0.85)
        self.assertAlmostEqual(float(self.known.at(1e6)), 0.5)


class SendFitTest(unittest.TestCase):
    def test_finds_latency_and_the_cap_of_the_chunks(self):
        size = numpy.array([2.0**e for e in range(13, 29)] * 2)
        rate = numpy.repeat([25e3, 50e3], 16)
        # 30 us + bytes at the link's rate, but at most 24.5 GB/s.
        time = 30 + size / numpy.minimum(rate, 24.5e3)
        found = nccl.fit_send(size, time, rate, [2.0**13, 2.0**20])
        numpy.testing.assert_allclose(found.latency_us, [30, 30], rtol=1e-2)
        self.assertAlmostEqual(found.cap / 24.5e3, 1, places=3)


class CollectiveFitTest(unittest.TestCase):
    def test_two_rings_tell_base_from_steps(self):
        ranks = numpy.repeat([2, 4, 8], 6)
        size = numpy.tile([2.0**e for e in range(10, 34, 4)], 3)
        steps, factor = 2 * (ranks - 1), 2 * (ranks - 1) / ranks
        # 4 us + 2 us a step + wire at half of 50 GB/s.
        time = 4 + steps * 2 + size * factor / 25e3
        found = nccl.fit_collective(size, time, steps, factor, 50e3, [2.0**10, 2.0**22])
        self.assertAlmostEqual(found.base_us, 4, places=1)
        numpy.testing.assert_allclose(found.step_us, [2, 2], rtol=2e-2)
        self.assertAlmostEqual(found.fraction, 0.5, places=3)


class MmaLawTest(unittest.TestCase):
    def test_finds_the_law_that_made_the_times(self):
        # 4 TB/s, 500 TFLOP/s, p 2; under load a tenth longer.
        timings = []
        for tokens in gemm.MMA_TILES:
            for inputs, outputs in ((16384, 106496), (53248, 16384)):
                read = inputs * outputs * 8576 / 128**2 / 4e6
                time = (read**2 + (2 * tokens * inputs * outputs / 500e6) ** 2) ** 0.5
                timings.append(
                    dict(tokens=tokens, inputs=inputs, outputs=outputs, graph_us=time, sustained_us=1.1 * time)
                )
        law = gemm.MmaLaw(timings)
        # 8 tokens take (16 / 500e6) / (0.5234 / 4e6) = 0.245 of the reads' time: sqrt(1 + 0.245^2) = 1.029 of it together.
        self.assertAlmostEqual(law.rate / 4e6, 1 / 1.029, places=2)
        self.assertAlmostEqual(law.peak / 500e6, 1, delta=0.05)
        self.assertAlmostEqual(law.exponent, 2, delta=0.3)
        self.assertAlmostEqual(law.sustained[64], 1.1)

    def test_a_tile_holds_8_16_32_or_64_tokens(self):
        self.assertEqual([gemm.tile(tokens) for tokens in (1, 8, 9, 16, 17, 33, 64)], [8, 8, 16, 16, 32, 64, 64])


class TextprotoTest(unittest.TestCase):
    def test_numbers_have_four_digits_and_no_noise(self):
        self.assertEqual(textproto.number(0.95371851), "0.9537")
        self.assertEqual(textproto.number(268435456.0), "268435456")
        self.assertEqual(textproto.number(7e-16), "0")

    def test_long_strings_are_adjacent_literals_that_join_to_the_original(self):
        text = "a sentence of words " * 20
        lines = textproto.string_field("note", text.strip(), "  ")
        joined = "".join(line.strip().strip('"') for line in lines[1:])
        self.assertEqual(joined, text.strip())


if __name__ == "__main__":
    unittest.main()
