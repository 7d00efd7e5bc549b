"""How alerts reach people: one message, said to one destination, in one of three ways. No database, no retries.

    message   what is said: the facts as JSON, and words for people. Pure
    outcome   what became of an attempt, in words without secrets. Pure
    posting   a POST, bounded; webhook, slack use it
    webhook   a POST that is signed after the Standard Webhooks scheme
    slack     a POST to a Slack incoming webhook
    mail      SMTP
    resolver  addresses of receivers' names, for all three
    courier   takes a message to a destination, whatever its kind, within a bound

The job `alerts` and the API's `…/alerts/test` call the courier; when something is tried again is `control.domain.deliveries`'
to say.
"""
