package main

import (
	"encoding/json"
	"io"
	"net/url"
	"path/filepath"

	"github.com/headgate/headgate/policy"
)

// What of SARIF 2.1.0 (OASIS Standard, 27 March 2020) a report uses.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool struct {
			Driver sarifDriver `json:"driver"`
		} `json:"tool"`
		Invocations []sarifInvocation `json:"invocations"`
		Results     []sarifResult     `json:"results"`
	}
	sarifDriver struct {
		Name            string      `json:"name"`
		SemanticVersion string      `json:"semanticVersion,omitempty"`
		Rules           []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID               string       `json:"id"`
		ShortDescription sarifMessage `json:"shortDescription"`
		HelpURI          string       `json:"helpUri,omitempty"`
	}
	sarifMessage struct {
		Text string `json:"text"`
	}
	sarifInvocation struct {
		Successful    bool                `json:"executionSuccessful"`
		Notifications []sarifNotification `json:"toolExecutionNotifications,omitempty"`
	}
	sarifNotification struct {
		Level     string          `json:"level"`
		Message   sarifMessage    `json:"message"`
		Locations []sarifLocation `json:"locations"`
	}
	sarifResult struct {
		RuleID       string            `json:"ruleId"`
		RuleIndex    int               `json:"ruleIndex"`
		Level        string            `json:"level"` // error, warning
		Message      sarifMessage      `json:"message"`
		Locations    []sarifLocation   `json:"locations"`
		Fingerprints map[string]string `json:"partialFingerprints"`
	}
	sarifLocation struct {
		Physical struct {
			Artifact struct {
				URI string `json:"uri"`
			} `json:"artifactLocation"`
			Region struct {
				Line int `json:"startLine"`
			} `json:"region"`
		} `json:"physicalLocation"`
	}
)

const sarifSchema = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

// writeSARIF writes the report as code scanning takes it: a result at the line of each version that is refused or warned of.
func (r *checkReport) writeSARIF(w io.Writer) error {
	run := sarifRun{Results: []sarifResult{}, Invocations: []sarifInvocation{{Successful: r.Failed == 0}}}
	run.Tool.Driver = sarifDriver{Name: "headgate", Rules: []sarifRule{}}
	places := map[string]int{}
	for _, v := range r.Versions {
		if v.Effect == "error" {
			i := &run.Invocations[0]
			i.Notifications = append(i.Notifications, sarifNotification{"error", sarifMessage{v.name() + ": " + v.Text}, []sarifLocation{v.location()}})
		}
		for _, f := range v.Reasons {
			run.add(places, v, f, "error")
		}
		for _, f := range v.Warnings {
			run.add(places, v, f, "warning")
		}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(sarifLog{Schema: sarifSchema, Version: "2.1.0", Runs: []sarifRun{run}})
}

// add adds a result, and its rule where it is the first one of it. A code is the rule: it is what people are taught by.
func (run *sarifRun) add(places map[string]int, v checkedVersion, f findingOf, level string) {
	driver := &run.Tool.Driver
	place, known := places[f.Code]
	if !known {
		place = len(driver.Rules)
		places[f.Code] = place
		driver.Rules = append(driver.Rules, sarifRule{ID: f.Code, ShortDescription: sarifMessage{"policy: " + f.Code}, HelpURI: f.Doc})
	}
	text := v.name() + ": " + f.Text
	if v.Effect == string(policy.Deny) && v.WorksNow != "" {
		text += "; works now: " + v.WorksNow
	}
	if v.AvailableFrom != "" && level == "error" {
		text += "; available from: " + v.AvailableFrom
	}
	run.Results = append(run.Results, sarifResult{
		RuleID: f.Code, RuleIndex: place, Level: level, Message: sarifMessage{text}, Locations: []sarifLocation{v.location()},
		Fingerprints: map[string]string{"headgate/v1": f.Code + " " + v.name()}, // the line moves, the finding stays
	})
}

func (v checkedVersion) location() sarifLocation {
	var l sarifLocation
	l.Physical.Artifact.URI = (&url.URL{Path: filepath.ToSlash(v.File)}).String()
	if filepath.IsAbs(v.File) {
		l.Physical.Artifact.URI = (&url.URL{Scheme: "file", Path: filepath.ToSlash(v.File)}).String()
	}
	l.Physical.Region.Line = max(v.Line, 1)
	return l
}
