package main

import (
	"fmt"
	"io"
	"math"
	"time"
)

// colours by contender: told apart by people who do not see all colours, and on paper.
var colours = map[string]string{
	"cowshed": "#0072b2", "moby": "#e69f00", "podman": "#cc79a7", "containerd": "#009e73", "floor": "#bbbbbb",
}

const (
	plotWidth  = 900
	labelWidth = 260
	timeWidth  = 90
	barHeight  = 13
	groupGap   = 14
	legendSize = 34
	axisSize   = 30
)

// writePlot draws the medians as bars on a logarithmic axis, grouped by operation.
func writePlot(w io.Writer, title string, columns []string, result *result) {
	shown := func(op operation) []string {
		var names []string
		for _, name := range columns {
			if median(result.samples[name][op]) > 0 {
				names = append(names, name)
			}
		}
		return names
	}
	height := legendSize + axisSize
	least, most := time.Hour, time.Duration(0)
	for _, op := range measured(result) {
		height += len(shown(op))*barHeight + groupGap
		for _, name := range shown(op) {
			m := median(result.samples[name][op])
			least, most = min(least, m), max(most, m)
		}
	}
	low := math.Floor(math.Log10(least.Seconds()))
	high := math.Ceil(math.Log10(most.Seconds()))
	scale := func(d time.Duration) float64 {
		return (math.Log10(d.Seconds()) - low) / max(high-low, 1) * (plotWidth - labelWidth - timeWidth)
	}

	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11" role="img">`+"\n",
		plotWidth, height, plotWidth, height)
	fmt.Fprintf(w, "<title>%s</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n", title)
	x := labelWidth
	for _, name := range columns {
		fmt.Fprintf(w, `<rect x="%d" y="8" width="12" height="12" fill="%s"/><text x="%d" y="18">%s</text>`+"\n", x, colours[name], x+16, name)
		x += 110
	}
	for power := low; power <= high; power++ {
		at := float64(labelWidth) + (power-low)/max(high-low, 1)*(plotWidth-labelWidth-timeWidth)
		fmt.Fprintf(w, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#dddddd"/>`+"\n", at, legendSize-6, at, height-axisSize)
		fmt.Fprintf(w, `<text x="%.1f" y="%d" text-anchor="middle" fill="#555555">%s</text>`+"\n", at, height-axisSize+14,
			decade(time.Duration(math.Round(math.Pow(10, power)*1e9))))
	}
	y := legendSize
	for _, op := range measured(result) {
		names := shown(op)
		if len(names) == 0 {
			continue
		}
		fmt.Fprintf(w, `<text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", labelWidth-8,
			float64(y)+float64(len(names)*barHeight)/2+4, op)
		for _, name := range names {
			m := median(result.samples[name][op])
			width := max(scale(m), 1)
			fmt.Fprintf(w, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, labelWidth, y, width, barHeight-2, colours[name])
			fmt.Fprintf(w, `<text x="%.1f" y="%d" fill="#333333" font-size="10">%s</text>`+"\n", float64(labelWidth)+width+4, y+barHeight-4, short(m))
			y += barHeight
		}
		y += groupGap
	}
	fmt.Fprintln(w, "</svg>")
}

// decade formats a power of ten.
func decade(d time.Duration) string {
	switch {
	case d < time.Microsecond:
		return fmt.Sprintf("%d ns", d.Nanoseconds())
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	default:
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
}
