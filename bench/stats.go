package main

import (
	"fmt"
	"slices"
	"time"
)

// median returns the median of times, 0 if there are none.
func median(times []time.Duration) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// short formats a time with three significant digits at most.
func short(d time.Duration) string {
	switch {
	case d <= 0:
		return "–"
	case d < time.Millisecond:
		return significant(float64(d)/float64(time.Microsecond)) + " µs"
	case d < time.Second:
		return significant(float64(d)/float64(time.Millisecond)) + " ms"
	default:
		return significant(d.Seconds()) + " s"
	}
}

// shortCPU formats the median of times that are counted in ticks, and may be none.
func shortCPU(times []time.Duration) string {
	switch m := median(times); {
	case len(times) == 0:
		return "–"
	case m < tick:
		return "< " + short(tick)
	default:
		return short(m)
	}
}

// ratio formats how many times as long a takes as b.
func ratio(a, b time.Duration) string {
	if a <= 0 || b <= 0 {
		return "–"
	}
	return significant(float64(a)/float64(b)) + "×"
}

// significant formats a number with two or three significant digits.
func significant(x float64) string {
	switch {
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	case x < 100:
		return fmt.Sprintf("%.1f", x)
	default:
		return fmt.Sprintf("%.0f", x)
	}
}
