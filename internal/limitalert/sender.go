package limitalert

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Ways to send an Alert.
const (
	byCommand = "command"
	byWebhook = "webhook"
)

// Outcomes of sending an Alert.
const (
	sent    = "ok"
	failed  = "failed"
	dropped = "dropped" // the queue was full, or the daemon has stopped
)

// queueLength is how many alerts wait while others are sent.
const queueLength = 256

// Alert is a container that has crossed a level, as commands and webhooks get it. Fields that are not known are missing.
type Alert struct {
	Percent      int       `json:"percent"` // the level
	Held         uint64    `json:"held"`    // in bytes
	Limit        uint64    `json:"limit"`
	Namespace    string    `json:"namespace,omitempty"` // of containerd
	ID           string    `json:"id,omitempty"`
	PodNamespace string    `json:"podNamespace,omitempty"`
	Pod          string    `json:"pod,omitempty"`
	Container    string    `json:"container,omitempty"`
	Service      string    `json:"service"`
	Volume       string    `json:"volume"`
	Time         time.Time `json:"time"`
}

// Sender sends alerts one after the other.
type Sender struct {
	ways  []way
	queue chan Alert
	sent  *prometheus.CounterVec
	log   *slog.Logger
}

// way sends an Alert, whose JSON is body.
type way struct {
	name string
	send func(ctx context.Context, a Alert, body []byte) error
}

// NewSender makes a Sender that runs a command, unless that is empty, and calls a webhook, unless that is "".
func NewSender(command []string, webhook string, log *slog.Logger) *Sender {
	s := &Sender{queue: make(chan Alert, queueLength), log: log, sent: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cowshed_limit_alerts_sent_total",
		Help: "Alerts by way (command or webhook) and outcome: ok, failed, or dropped since too many were waiting or the daemon stopped.",
	}, []string{"way", "outcome"})}
	if len(command) > 0 {
		s.ways = append(s.ways, way{byCommand, commandOf(command)})
	}
	if webhook != "" {
		s.ways = append(s.ways, way{byWebhook, webhookOf(webhook)})
	}
	for _, w := range s.ways {
		for _, outcome := range []string{sent, failed, dropped} {
			s.sent.WithLabelValues(w.name, outcome)
		}
	}
	return s
}

// Send has Run send an alert. It never waits: an alert for which there is no room is dropped, and counted.
func (s *Sender) Send(a Alert) {
	if len(s.ways) == 0 {
		return
	}
	select {
	case s.queue <- a:
	default:
		s.drop()
	}
}

func (s *Sender) drop() {
	for _, w := range s.ways {
		s.sent.WithLabelValues(w.name, dropped).Inc()
	}
}

// Run sends alerts until ctx is done. A command that runs then is killed, and alerts that wait are dropped, and counted. Nobody
// may call Send any more when ctx is done.
func (s *Sender) Run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case a := <-s.queue:
			s.send(ctx, a)
		}
	}
	waiting := len(s.queue)
	for range waiting {
		<-s.queue
		s.drop()
	}
	if waiting > 0 {
		s.log.Warn("reports of containers near their limit were not sent, since the daemon stops", "reports", waiting)
	}
}

func (s *Sender) send(ctx context.Context, a Alert) {
	body, err := json.Marshal(a)
	for _, w := range s.ways {
		outcome := sent
		if err == nil {
			err = w.send(ctx, a, body)
		}
		if err != nil {
			outcome = failed
			s.log.Error("an alert cannot be sent", "way", w.name, "volume", a.Volume, "error", err)
		}
		s.sent.WithLabelValues(w.name, outcome).Inc()
		err = nil
	}
}

// Describe implements prometheus.Collector.
func (s *Sender) Describe(descs chan<- *prometheus.Desc) { s.sent.Describe(descs) }

// Collect implements prometheus.Collector.
func (s *Sender) Collect(found chan<- prometheus.Metric) { s.sent.Collect(found) }
