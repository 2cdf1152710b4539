#!/bin/sh
# Penstock with nothing but curl. URL=http://127.0.0.1:8000 sh examples/curl.sh
set -eu
URL=${URL:-http://127.0.0.1:8000}
JSON='content-type: application/json'

echo '── a whole answer'
curl -sS --fail-with-body "$URL/v1/generate" -H "$JSON" -d '{"prompt": "Hello", "max_tokens": 8}'
echo

echo '── a stream of tokens'
curl -sSN --fail-with-body "$URL/v1/generate" -H "$JSON" -d '{"prompt": "Hello", "max_tokens": 3, "stream": true}'

echo '── in the background: submit, then poll until it has ended'
WHERE=$(curl -sS -D - -o /dev/null "$URL/v1/generate" -H "$JSON" \
  -d '{"prompt": "Take your time", "max_tokens": 16, "background": true}' |
  tr -d '\r' | sed -n 's/^location: //p')
for _ in $(seq 100); do
  REQUEST=$(curl -sS "$URL$WHERE")
  case $REQUEST in *'"state":"queued"'* | *'"state":"running"'*) sleep 0.1 ;; *) break ;; esac
done
echo "$REQUEST"

echo '── the same tokens again, from the third on'
LAST_ID=$(curl -sSN "$URL$WHERE/events" | sed -n '/^id: .*-2$/{s/^id: //p;q;}')
curl -sSN "$URL$WHERE/events" -H "Last-Event-ID: $LAST_ID" | head -n 3

echo '── cancelled'
WHERE=$(curl -sS -D - -o /dev/null "$URL/v1/generate" -H "$JSON" \
  -d '{"prompt": "Too long", "max_tokens": 5000, "background": true}' |
  tr -d '\r' | sed -n 's/^location: //p')
curl -sS -X DELETE "$URL$WHERE"
echo

echo '── in the form of OpenAI'
curl -sS --fail-with-body "$URL/v1/chat/completions" -H "$JSON" \
  -d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}'
echo
