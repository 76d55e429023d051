package main

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// line is one line of a panel.
type line struct {
	name string
	x, y []float64
}

// panel is one diagram.
type panel struct {
	title  string
	xlabel string
	logX   bool // x is seconds, from 0.1 ms to 10 s
	top    float64
	lines  []line
}

const (
	panelWidth  = 420.0
	panelHeight = 220.0
	marginLeft  = 52.0
	marginTop   = 30.0
)

// colour is that of the line with number i: told apart by people who do not see all colours, on light and dark.
func colour(i int) string {
	all := []string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999", "#f0e442"}
	return all[i%len(all)]
}

// drawing is an SVG of panels side by side. It follows the reader's choice of light or dark.
func drawing(title string, panels []panel) string {
	var b strings.Builder
	width, height := (panelWidth+marginLeft+20)*float64(len(panels)), panelHeight+marginTop+40
	for _, p := range panels {
		height = max(height, panelHeight+marginTop+44+16*float64((len(p.lines)+1)/2))
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" role="img" aria-label="%s" font-family="sans-serif" font-size="11">`+"\n", width, height, html.EscapeString(title))
	b.WriteString(`<style>svg{background:#fff;color:#222}@media(prefers-color-scheme:dark){svg{background:#111;color:#ddd}}text{fill:currentColor}.grid{stroke:currentColor;opacity:.15}.line{fill:none;stroke-width:1.6}</style>` + "\n")
	for i, p := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%.0f,%.0f)">`+"\n", marginLeft+float64(i)*(panelWidth+marginLeft+20), marginTop)
		p.draw(&b)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (p *panel) draw(b *strings.Builder) {
	right, top := 1.0, p.top
	for _, l := range p.lines {
		for i := range l.x {
			right = max(right, l.x[i])
			if p.top == 0 {
				top = max(top, l.y[i])
			}
		}
	}
	top = niceAbove(top)
	at := func(x, y float64) (float64, float64) {
		if p.logX {
			x = (math.Log10(min(10, max(1e-4, x))) + 4) / 5
		} else {
			x /= right
		}
		return x * panelWidth, panelHeight * (1 - min(1, y/top))
	}
	fmt.Fprintf(b, `<text y="-12" font-size="13">%s</text>`+"\n", html.EscapeString(p.title))
	for i := range 5 {
		y := top * float64(i) / 4
		_, py := at(0, y)
		fmt.Fprintf(b, `<line class="grid" x2="%.0f" y1="%.1f" y2="%.1f"/><text x="-6" y="%.1f" text-anchor="end">%s</text>`+"\n", panelWidth, py, py, py+4, number(y))
	}
	for i := range 6 {
		x, text := right*float64(i)/5, ""
		if p.logX {
			x = math.Pow(10, float64(i)-4)
			text = short(time.Duration(x * float64(time.Second)))
		} else {
			text = number(x)
		}
		px, _ := at(x, 0)
		fmt.Fprintf(b, `<line class="grid" x1="%.1f" x2="%.1f" y2="%.0f"/><text x="%.1f" y="%.0f" text-anchor="middle">%s</text>`+"\n", px, px, panelHeight, px, panelHeight+14, text)
	}
	fmt.Fprintf(b, `<text x="%.0f" y="%.0f" text-anchor="middle">%s</text>`+"\n", panelWidth/2, panelHeight+28, html.EscapeString(p.xlabel))
	for i, l := range p.lines {
		fmt.Fprintf(b, `<polyline class="line" stroke="%s" points="`, colour(i))
		for j := range l.x {
			x, y := at(l.x[j], l.y[j])
			fmt.Fprintf(b, "%.1f,%.1f ", x, y)
		}
		x, y := float64(i%2)*panelWidth/2, panelHeight+46+16*float64(i/2)
		fmt.Fprintf(b, `"/><rect x="%.0f" y="%.0f" width="14" height="4" fill="%s"/><text x="%.0f" y="%.0f">%s</text>`+"\n", x, y-6, colour(i), x+20, y, html.EscapeString(l.name))
	}
}

// niceAbove is the least of 1, 2, 4, 5, 8 × 10ⁿ that is not below v.
func niceAbove(v float64) float64 {
	if v <= 0 {
		return 1
	}
	scale := math.Pow(10, math.Floor(math.Log10(v)))
	for _, n := range []float64{1, 2, 4, 5, 8, 10} {
		if n*scale >= v*0.9999 {
			return n * scale
		}
	}
	return 10 * scale
}

func number(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.4gk", v/1000)
	}
	return fmt.Sprintf("%.3g", v)
}

// short is a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.2g ms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}

// panels of a result: calls by second, the shares of calls by how long they took, the controller.
func (r *result) panels() []panel {
	calls := panel{title: "Calls answered in a second", xlabel: "seconds"}
	r.tally.mu.Lock()
	perSecond, agents := line{name: "calls"}, line{name: "different agents"}
	for i, n := range r.tally.perSec {
		perSecond.x, perSecond.y = append(perSecond.x, float64(i)), append(perSecond.y, float64(n))
		agents.x, agents.y = append(agents.x, float64(i)), append(agents.y, float64(r.tally.agents[i]))
	}
	r.tally.mu.Unlock()
	calls.lines = []line{perSecond, agents}
	took := panel{title: "Share of calls answered within (%)", xlabel: "", logX: true, top: 100}
	for _, f := range r.tally.figures() {
		if len(f.sorted) < 10 {
			continue
		}
		l := line{name: f.name}
		for i := range 201 {
			share := float64(i) / 200
			d := f.sorted[min(len(f.sorted)-1, int(share*float64(len(f.sorted))))]
			l.x, l.y = append(l.x, d.Seconds()), append(l.y, 100*share)
		}
		took.lines = append(took.lines, l)
	}
	use := panel{title: "The controller", xlabel: "seconds"}
	cores, rss := line{name: "CPU, % of a core", x: r.meter.at}, line{name: "memory, MiB", x: r.meter.at, y: r.meter.rss}
	for _, c := range r.meter.cores {
		cores.y = append(cores.y, 100*c)
	}
	use.lines = []line{cores, rss}
	return []panel{calls, took, use}
}
