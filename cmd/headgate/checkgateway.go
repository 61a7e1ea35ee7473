package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/policy"
)

const (
	checkedAtOnce  = 64 // in one request: each may make the gateway ask an upstream
	checkingAtMost = 10 * time.Minute
)

// A gatewayChecker asks a gateway, as somebody whom it knows.
type gatewayChecker struct {
	address string
	http    *http.Client
	header  string // of Authorization
}

// checker is who answers.
func (q *checkRun) checker(ctx context.Context) (checker, error) {
	if q.bundle.dir != "" {
		return q.bundle.open(ctx)
	}
	c, err := q.gateway(ctx)
	if err != nil {
		return nil, err
	}
	c.http.Timeout = checkingAtMost
	return c, nil
}

// gateway finds the gateway and this user's credential, as doctor does.
func (q *checkRun) gateway(ctx context.Context) (*gatewayChecker, error) {
	if q.tokenFile != "" {
		text, err := os.ReadFile(q.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("reading the token: %w", err)
		}
		address, err := gatewayAddress(q.url)
		if err != nil {
			return nil, err
		}
		trust, err := trusting(q.caFile)
		return &gatewayChecker{address, webClient(trust), "Bearer " + strings.TrimSpace(string(text))}, err
	}
	x := examination{Gateway: q.url, caFile: q.caFile}
	if x.Gateway == "" {
		env, err := effectiveGoEnvironment(ctx)
		if err != nil {
			return nil, err
		}
		x.env = env
	}
	if err := x.findGateway(); err != nil {
		return nil, err
	}
	if x.login != nil && q.caFile != "" {
		x.login.CA = q.caFile
	}
	address, c, header, err := x.asUser(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w; run: headgate login %s, or use --token-file", err, x.Gateway)
	}
	return &gatewayChecker{address, c, header}, nil
}

func (g *gatewayChecker) name() string { return g.address }

func (g *gatewayChecker) check(ctx context.Context, needs []need, tell func(int)) ([]gateway.EvaluationAnswer, error) {
	defer g.http.CloseIdleConnections()
	answers := make([]gateway.EvaluationAnswer, 0, len(needs))
	for len(answers) < len(needs) {
		tell(len(answers))
		part := needs[len(answers):min(len(answers)+checkedAtOnce, len(needs))]
		got, err := g.ask(ctx, part)
		if err != nil {
			return nil, err
		}
		answers = append(answers, got...)
	}
	return answers, nil
}

// ask puts one request. What has no version is answered here.
func (g *gatewayChecker) ask(ctx context.Context, needs []need) ([]gateway.EvaluationAnswer, error) {
	answers := make([]gateway.EvaluationAnswer, len(needs))
	var q gateway.EvaluationRequest
	var place []int
	for i, n := range needs {
		if n.problem != "" {
			answers[i] = unanswered(n)
			continue
		}
		place = append(place, i)
		q.Evaluations = append(q.Evaluations, gateway.Evaluation{
			Action:   &gateway.EvaluationAction{Name: n.action()},
			Resource: &gateway.EvaluationEntity{Type: policy.NewName(n.Path, "").Type, ID: n.String()},
		})
	}
	if len(place) == 0 {
		return answers, nil
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("encoding the questions: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, g.address+"/-/access/v1/evaluations", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("preparing the request: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", g.header)
	var reply gateway.EvaluationReply
	if err := askOnce(g.http, r, &reply); err != nil {
		return nil, err
	}
	if len(reply.Evaluations) != len(place) {
		return nil, errors.New("the gateway answered another number of questions than were asked")
	}
	for i, a := range reply.Evaluations {
		if a.Context.Decision == nil && a.Context.Error == nil {
			return nil, fmt.Errorf("the gateway's answer about %s holds no decision", needs[place[i]])
		}
		answers[place[i]] = a
	}
	return answers, nil
}

// action is what the build does with the version.
func (n need) action() string {
	if n.modOnly {
		return "mod"
	}
	return "zip"
}

// unanswered is what stands for a package that could not be loaded.
func unanswered(n need) gateway.EvaluationAnswer {
	return gateway.EvaluationAnswer{Context: gateway.EvaluationReason{Error: &gateway.EvaluationError{Code: "NOT-LOADED", Message: n.problem}}}
}
